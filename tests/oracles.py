"""What the network should compute, in float64 NumPy and nothing of ours: slow, obvious, one sequence at a time.

A row of a ragged batch is cut to its real steps before anything is computed, so padding cannot leak in here.

    vanilla  h_t = f(W_xh x_t + W_hh h_{t-1} + b_h)                                   Elman 1990
    gru      r, z = sigmoid(W x_t + b + W' h_{t-1}),  n = f(W_n x_t + b_n + r * (W'_n h_{t-1} + b_hn))
             h_t = (1 - z) n + z h_{t-1}                                              Cho et al. 2014, reset as in cuDNN
    lstm     i, f, o = sigmoid(...), g = f(...),  c_t = f c_{t-1} + i g,  h_t = o f(c_t),  where f( ) is tanh
                                                                  Hochreiter & Schmidhuber 1997, Gers et al. 2000

Backward passes are written by hand: d before a letter is the derivative of the loss with respect to it, and a gate's
pre-activation is called a. Parameters are dictionaries, keyed as in the cells.
"""

import numpy as np


def sigmoid(a):
    return 0.5 * (1.0 + np.tanh(0.5 * a))


# name -> (f, its derivative, both as functions of the input)
ACTIVATIONS = {
    "tanh": (np.tanh, lambda a: 1.0 / np.cosh(a) ** 2),
    "relu": (lambda a: np.maximum(a, 0.0), lambda a: (a > 0.0) * 1.0),
    "sigmoid": (sigmoid, lambda a: sigmoid(a) * sigmoid(-a)),
    "softsign": (lambda a: a / (1.0 + np.abs(a)), lambda a: 1.0 / (1.0 + np.abs(a)) ** 2),
    "identity": (lambda a: a, lambda a: np.ones_like(a)),
    "leaky_relu": (lambda a: np.where(a > 0.0, a, 0.01 * a), lambda a: np.where(a > 0.0, 1.0, 0.01)),
    "elu": (lambda a: np.where(a > 0.0, a, np.exp(a) - 1.0), lambda a: np.where(a > 0.0, 1.0, np.exp(a))),
    "softplus": (lambda a: np.log(1.0 + np.exp(a)), sigmoid),
    "hard_tanh": (lambda a: np.clip(a, -1.0, 1.0), lambda a: (np.abs(a) < 1.0) * 1.0),
}


# --- one step and its transpose: step(p, state, x) -> (state, y, tape), back(p, tape, dstate, dy) -> (dstate, dp, dx)


def vanilla_step(p, state, x, activation="tanh"):
    (h,) = state
    a = p["W_xh"] @ x + p["W_hh"] @ h + p["b_h"]
    new = ACTIVATIONS[activation][0](a)
    return (new,), new, (x, h, a)


def vanilla_back(p, tape, dstate, dy, activation="tanh"):
    x, h, a = tape
    da = (dstate[0] + dy) * ACTIVATIONS[activation][1](a)
    dp = {"W_xh": np.outer(da, x), "W_hh": np.outer(da, h), "b_h": da}
    return (p["W_hh"].T @ da,), dp, p["W_xh"].T @ da


def gru_step(p, state, x, activation="tanh"):
    (h,) = state
    x_r, x_z, x_n = np.split(p["W_xh"] @ x + p["b_h"], 3)
    h_r, h_z, h_n = np.split(p["W_hh"] @ h, 3)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    m = h_n + p["b_hn"]
    a_n = x_n + r * m
    n = ACTIVATIONS[activation][0](a_n)
    new = (1.0 - z) * n + z * h
    return (new,), new, (x, h, r, z, m, a_n, n)


def gru_back(p, tape, dstate, dy, activation="tanh"):
    x, h, r, z, m, a_n, n = tape
    dh = dstate[0] + dy
    da_n = dh * (1.0 - z) * ACTIVATIONS[activation][1](a_n)
    da_z = dh * (h - n) * z * (1.0 - z)
    da_r = da_n * m * r * (1.0 - r)
    dm = da_n * r
    da_x = np.concatenate([da_r, da_z, da_n])  # what reaches the input side
    da_h = np.concatenate([da_r, da_z, dm])  # what reaches the recurrent side
    dp = {"W_xh": np.outer(da_x, x), "W_hh": np.outer(da_h, h), "b_h": da_x, "b_hn": dm}
    return (dh * z + p["W_hh"].T @ da_h,), dp, p["W_xh"].T @ da_x


def lstm_step(p, state, x, activation="tanh"):
    f_act = ACTIVATIONS[activation][0]
    h, c = state
    a_i, a_f, a_g, a_o = np.split(p["W_xh"] @ x + p["W_hh"] @ h + p["b_h"], 4)
    i, f, g, o = sigmoid(a_i), sigmoid(a_f), f_act(a_g), sigmoid(a_o)
    c_new = f * c + i * g
    h_new = o * f_act(c_new)
    return (h_new, c_new), h_new, (x, h, c, i, f, a_g, o, c_new)


def lstm_back(p, tape, dstate, dy, activation="tanh"):
    x, h, c, i, f, a_g, o, c_new = tape
    f_act, slope = ACTIVATIONS[activation]
    dh = dstate[0] + dy
    dc = dstate[1] + dh * o * slope(c_new)
    da = np.concatenate(
        [
            dc * f_act(a_g) * i * (1.0 - i),
            dc * c * f * (1.0 - f),
            dc * i * slope(a_g),
            dh * f_act(c_new) * o * (1.0 - o),
        ]
    )
    dp = {"W_xh": np.outer(da, x), "W_hh": np.outer(da, h), "b_h": da}
    return (p["W_hh"].T @ da, dc * f), dp, p["W_xh"].T @ da


# name -> (step, back, arrays of H numbers in the state)
CELLS = {
    "vanilla": (vanilla_step, vanilla_back, 1),
    "gru": (gru_step, gru_back, 1),
    "lstm": (lstm_step, lstm_back, 2),
}


def unroll(name, p, xs, length=None, *, reverse=False, **settings):
    """xs [T, B, D] -> state: a tuple of [B, H]; ys [T, B, H], zero where there is no step; tapes for `unroll_back`."""
    step, _, parts = CELLS[name]
    steps, rows, _ = xs.shape
    hidden = p["W_hh"].shape[1]
    length = np.full(rows, steps) if length is None else length
    state = tuple(np.zeros((rows, hidden)) for _ in range(parts))
    ys = np.zeros((steps, rows, hidden))
    tapes = {}
    for b in range(rows):
        now = tuple(np.zeros(hidden) for _ in range(parts))
        for t in real_steps(length[b], reverse):
            now, ys[t, b], tapes[t, b] = step(p, now, xs[t, b], **settings)
        for part in range(parts):
            state[part][b] = now[part]
    return state, ys, tapes


def unroll_back(name, p, tapes, xs, length, dstate, dys, *, reverse=False, **settings):
    """dstate: a tuple of [B, H], dys [T, B, H] -> dp, dxs [T, B, D]."""
    _, back, _ = CELLS[name]
    length = np.full(xs.shape[1], xs.shape[0]) if length is None else length
    dp = {key: np.zeros_like(value) for key, value in p.items()}
    dxs = np.zeros(xs.shape)
    for b in range(xs.shape[1]):
        dnow = tuple(part[b] for part in dstate)
        for t in reversed(list(real_steps(length[b], reverse))):
            dnow, more, dxs[t, b] = back(p, tapes[t, b], dnow, dys[t, b], **settings)
            for key, value in more.items():
                dp[key] = dp[key] + value
    return dp, dxs


def real_steps(length, reverse):
    return range(length - 1, -1, -1) if reverse else range(length)


# --- losses, one answer at a time


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_loss(z, c):
    """logits [C], class c -> -ln p_c and its gradient p - y."""
    shifted = z - z.max()
    loss = np.log(np.sum(np.exp(shifted))) - shifted[c]
    return loss, softmax(z) - np.eye(len(z))[c]


def sigmoid_loss(z, y):
    """one logit [1], y in {0, 1} -> -y ln p - (1 - y) ln(1 - p) and its gradient p - y."""
    return np.logaddexp(0.0, z[0]) - y * z[0], sigmoid(z) - y


LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


# --- the many-to-one network: x_t = a row of the embedding (or a one-hot vector), y = W_hy h_T + b_y


def network(name, p, tokens, length, target, weight, *, output="softmax", **settings):
    """Loss (mean over weight) and gradients of the many-to-one network over a batch.

    p has the cell's arrays, "embedding" [V, D] (the identity makes it one-hot), "W_hy" [C, H] and "b_y" [C].
    tokens [B, T], length [B], target [B], weight [B] -> logits [B, C], loss, dp.
    """
    xs = p["embedding"][tokens].transpose(1, 0, 2)
    state, _, tapes = unroll(name, p, xs, length, **settings)
    last = state[0]
    logits = last @ p["W_hy"].T + p["b_y"]
    losses, dlogits = zip(*(LOSSES[output](z, c) for z, c in zip(logits, target, strict=True)), strict=True)
    loss = np.sum(weight * np.array(losses)) / np.sum(weight)
    dlogits = np.array(dlogits) * (weight / np.sum(weight))[:, None]
    dstate = (dlogits @ p["W_hy"], *tuple(np.zeros_like(part) for part in state[1:]))
    cell_p = {key: p[key] for key in p if key not in ("embedding", "W_hy", "b_y")}
    dp, dxs = unroll_back(name, cell_p, tapes, xs, length, dstate, np.zeros(xs.shape[:2] + last.shape[1:]), **settings)
    demb = np.zeros_like(p["embedding"])
    np.add.at(demb, tokens.T, dxs)
    return logits, loss, {**dp, "embedding": demb, "W_hy": dlogits.T @ last, "b_y": dlogits.sum(0)}


# --- heads over ys [T, B, K], zero where there is no step


def mean_head(ys, length):
    return ys.sum(0) / np.maximum(length, 1)[:, None]


def max_head(ys, length):
    rows = [ys[:n, b].max(0) if n else np.zeros(ys.shape[2]) for b, n in enumerate(length)]
    return np.array(rows)
