/* The recurrent layers of jaxrnn as two calls of XLA's foreign function interface: all steps forward, all steps back.

   forward    Z_t = W_xh x_t + b (+ W_hh h_{t-1}),  h_t = cell(Z_t, h_{t-1})
   backward   a_t = dL/dZ_t,  dL/dh_{t-1} = W_hh^T a_t + ...,  dW += a_t [x_t, h_{t-1}]^T,  dx_t = W_xh^T a_t

   The rows of a batch are sorted by length and dealt to parts; a part runs through time on one core without meeting the
   others, and at step t computes only the rows that are longer than t: the work is that of the tokens that exist.
   H is a multiple of the vector (the caller pads), D may be any. Sums over parts are taken in a fixed order: the same number of
   threads gives the same bits. */

#include "foreign.h"

#if BYTES == 64 /* a register tile: most rows, vectors of each. Of 32 registers 24 hold sums */
#define MR 8
#define NR 3
#else /* 12 of 16: eight loads for twelve products, where a row of eight would need nine for eight */
#define MR 6
#define NR 2
#endif
#define LOOSE 16 /* rows of all steps for which weights are not packed */
#define CHUNK 128 /* rows of the products over several steps: their operands stay in the second cache */

#define AT(p) (*(vec *)(p))
#define GET(p) (*(const vec *)(p))
#define EACH(H) for (int j = 0; j < (H); j += VW)

/* ---- products ------------------------------------------------------------------------------------------------- */

enum { SET, ADD }; /* what becomes of the numbers that were there */

/* c[i][0:n*VW] (+)= sum_k a[i][k] b[k][0:n*VW] for m rows; b is packed, k after k */
INLINE void tile(const int m, const int n, int K, const real *const *a, const real *b, real *const *c, int col,
                 int mode, const real *bias) {
  vec sum[MR][NR];
  const real *at[MR];
#pragma GCC unroll 8
  for (int i = 0; i < m; i++) {
    at[i] = a[i];
#pragma GCC unroll 3
    for (int j = 0; j < n; j++)
      sum[i][j] = mode == ADD ? *(const vec *)(c[i] + col + j * VW)
                              : bias ? *(const vec *)(bias + col + j * VW) : (vec){0};
  }
  for (int k = 0; k < K; k++) {
    vec w[NR];
#pragma GCC unroll 3
    for (int j = 0; j < n; j++) w[j] = *(const vec *)(b + (size_t)k * n * VW + j * VW);
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
      real x = at[i][k];
#pragma GCC unroll 3
      for (int j = 0; j < n; j++) sum[i][j] += w[j] * x;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < m; i++)
#pragma GCC unroll 3
    for (int j = 0; j < n; j++) *(vec *)(c[i] + col + j * VW) = sum[i][j];
}

/* M rows in tiles of about the same height: a last one of a row or two would wait for its own sums */
#define EACH_TILE(M, i, m) \
  for (int i = 0, m, left = ((M) + MR - 1) / MR; left && (m = ((M) - i + left - 1) / left); i += m, left--)

#define TILE(m, n) \
  case m: \
    tile(m, n, K, a + i, b, c + i, col, mode, bias); \
    break;
#if MR > 6
#define HIGHEST(n) TILE(7, n) TILE(8, n)
#else
#define HIGHEST(n)
#endif
#define TILES(n) \
  static __attribute__((noinline)) void tiles##n(int M, int K, const real *const *a, const real *b, real *const *c, \
                                                 int col, int mode, const real *bias) { \
    EACH_TILE(M, i, m) switch (m) { TILE(1, n) TILE(2, n) TILE(3, n) TILE(4, n) TILE(5, n) TILE(6, n) HIGHEST(n) } \
  }
TILES(1)
TILES(2)
#if NR > 2
TILES(3)
#endif

/* c[M][N] (+)= a[M][K] b, rows by their addresses, b packed by `pack`; bias [N] or NULL where nothing is there yet */
static void product(int M, int N, int K, const real *const *a, const real *b, real *const *c, int mode,
                    const real *bias) {
  for (int col = 0; col < N; col += NR * VW, b += (size_t)K * NR * VW) {
    int n = (N - col) / VW;
    if (n == 1) tiles1(M, K, a, b, c, col, mode, bias);
    else if (n == 2 || NR == 2) tiles2(M, K, a, b, c, col, mode, bias);
#if NR > 2
    else tiles3(M, K, a, b, c, col, mode, bias);
#endif
  }
}

static int filled(int n) { return (n + VW - 1) / VW * VW; }

/* b[K][filled(N)] = w[k * k_step + j * j_step], zero from N on, in panels of NR vectors; one of the steps is 1 */
static void pack(int K, int N, const real *w, int64_t k_step, int64_t j_step, real *b) {
  for (int col = 0; col < N; col += NR * VW) {
    int left = N - col, width = left < NR * VW ? filled(left) : NR * VW, real_ones = left < width ? left : width;
    if (real_ones < width) memset(b, 0, sizeof(real) * K * width);
    if (j_step == 1)
      for (int k = 0; k < K; k++) {
        const real *from = w + k * k_step + col;
        real *to = b + (size_t)k * width;
        int j = 0;
        for (; j + VW <= real_ones; j += VW) AT(to + j) = GET(from + j);
        if (j < real_ones) memcpy(to + j, from + j, sizeof(real) * (real_ones - j));
      }
    else
      for (int j = 0; j < real_ones; j++)
        for (int k = 0; k < K; k++) b[(size_t)k * width + j] = w[k * k_step + (col + j) * j_step];
    b += (size_t)K * width;
  }
}

/* The same for a row or two, with weights as they lie: packing them would take longer than the product. */
#define WIDE 8 /* sums at once: fewer would wait for each other */

/* to[j] = the sum of the numbers of sum[j] */
INLINE void totals(const vec *sum, real *to) {
#if defined(__AVX__) && !defined(DOUBLE)
  typedef float eight __attribute__((vector_size(32), aligned(4), may_alias));
  eight x[WIDE];
#pragma GCC unroll 8
  for (int j = 0; j < WIDE; j++) {
    x[j] = *(const eight *)(sum + j);
    if (BYTES == 64) x[j] += *(const eight *)((const real *)(sum + j) + VW / 2);
  }
#define PAIRS __builtin_ia32_haddps256 /* sums of neighbours, in each half by itself */
  eight low = PAIRS(PAIRS(x[0], x[1]), PAIRS(x[2], x[3])), high = PAIRS(PAIRS(x[4], x[5]), PAIRS(x[6], x[7]));
  *(eight *)to = __builtin_ia32_vperm2f128_ps256(low, high, 0x20) + __builtin_ia32_vperm2f128_ps256(low, high, 0x31);
#else
  for (int j = 0; j < WIDE; j++) {
    to[j] = 0;
    for (int i = 0; i < VW; i++) to[j] += sum[j][i];
  }
#endif
}

/* c[N] (+)= w a, w [N][K]; N is a multiple of WIDE, K of VW or zeros follow `a` */
static void dots(int N, int K, const real *a, const real *w, real *c, int mode, const real *bias) {
  for (int j = 0; j < N; j += WIDE, w += (size_t)WIDE * K) {
    vec sum[WIDE] = {{0}};
    real found[WIDE];
    for (int k = 0; k < K; k += VW)
#pragma GCC unroll 8
      for (int i = 0; i < WIDE; i++) sum[i] += GET(w + (size_t)i * K + k) * GET(a + k);
    totals(sum, found);
    for (int i = 0; i < WIDE; i++) c[j + i] = found[i] + (mode == ADD ? c[j + i] : bias ? bias[j + i] : 0);
  }
}

/* c[N] (+)= a w, w [K][N] */
INLINE void axpys_of(const int n, int N, int K, const real *a, const real *w, real *c, int mode) {
  vec sum[WIDE];
#pragma GCC unroll 8
  for (int j = 0; j < n; j++) sum[j] = mode == ADD ? GET(c + j * VW) : (vec){0};
  for (int k = 0; k < K; k++)
#pragma GCC unroll 8
    for (int j = 0; j < n; j++) sum[j] += GET(w + (size_t)k * N + j * VW) * a[k];
#pragma GCC unroll 8
  for (int j = 0; j < n; j++) AT(c + j * VW) = sum[j];
}
static void axpys(int N, int K, const real *a, const real *w, real *c, int mode) {
  int col = 0;
  for (; col + WIDE * VW <= N; col += WIDE * VW) axpys_of(WIDE, N, K, a, w + col, c + col, mode);
  for (; col + 2 * VW <= N; col += 2 * VW) axpys_of(2, N, K, a, w + col, c + col, mode);
  for (; col < N; col += VW) axpys_of(1, N, K, a, w + col, c + col, mode);
}

/* c[i][col:] += sum_k a[k * lda + i] b[k][col:]: m rows of a weight's gradient */
INLINE void outer_tile(const int m, const int n, int K, const real *a, int lda, const real *const *b, real *c, int ldc,
                       int col) {
  vec sum[MR][NR];
#pragma GCC unroll 8
  for (int i = 0; i < m; i++)
#pragma GCC unroll 3
    for (int j = 0; j < n; j++) sum[i][j] = *(vec *)(c + (size_t)i * ldc + col + j * VW);
  for (int k = 0; k < K; k++) {
    vec w[NR];
    const real *row = b[k] + col, *x = a + (size_t)k * lda;
#pragma GCC unroll 3
    for (int j = 0; j < n; j++) w[j] = *(const vec *)(row + j * VW);
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 3
      for (int j = 0; j < n; j++) sum[i][j] += w[j] * x[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < m; i++)
#pragma GCC unroll 3
    for (int j = 0; j < n; j++) *(vec *)(c + (size_t)i * ldc + col + j * VW) = sum[i][j];
}

/* c[M][N] += a^T b: a [K][lda] from its first column on, b by rows; M is a multiple of WIDTH, so that every tile has
   MR rows, or one less where MR does not divide it */
static void outer(int M, int N, int K, const real *a, int lda, const real *const *b, real *c) {
  for (int col = 0; col < N; col += NR * VW) {
    int n = (N - col) / VW;
    EACH_TILE(M, i, m) {
      real *at = c + (size_t)i * N;
#if NR > 2
      if (n > 2) outer_tile(MR, 3, K, a + i, lda, b, at, N, col);
      else if (n == 2) outer_tile(MR, 2, K, a + i, lda, b, at, N, col);
      else outer_tile(MR, 1, K, a + i, lda, b, at, N, col);
#else
      if (m == MR && n > 1) outer_tile(MR, 2, K, a + i, lda, b, at, N, col);
      else if (n > 1) outer_tile(MR - 1, 2, K, a + i, lda, b, at, N, col);
      else if (m == MR) outer_tile(MR, 1, K, a + i, lda, b, at, N, col);
      else outer_tile(MR - 1, 1, K, a + i, lda, b, at, N, col);
#endif
    }
  }
}

/* ---- activations ---------------------------------------------------------------------------------------------- */

enum { TANH, RELU, SIGMOID, SOFTSIGN, IDENTITY, LEAKY_RELU, HARD_TANH };

#ifdef DOUBLE
INLINE vec tanh_of(vec x) {
  for (int i = 0; i < VW; i++) x[i] = tanh(x[i]);
  return x;
}
#else
/* x P(x^2) / Q(x^2), fitted for this file to the least largest relative error on [-8.5, 8.5]: 3.5e-7 in float32 */
INLINE vec tanh_of(vec x) {
  x = bounded(x, -8.5f, 8.5f);
  vec y = x * x;
  vec p = (((1.427013e-08f * y + 2.1251728e-05f) * y + 0.00353406975f) * y + 0.134132832f) * y + 1.0f;
  vec q = (((8.14550219e-07f * y + 0.000334893382f) * y + 0.0260229148f) * y + 0.467466056f) * y + 1.0f;
  return bounded(x * p / q, -1.0f, 1.0f);
}
#endif
INLINE vec sigmoid_of(vec x) { return 0.5f + 0.5f * tanh_of(0.5f * x); }
INLINE vec size_of(vec x) { return where(x < all(0), -x, x); }

INLINE vec activate(const int f, vec x) {
  switch (f) {
    case TANH: return tanh_of(x);
    case RELU: return where(x < all(0), all(0), x);
    case SIGMOID: return sigmoid_of(x);
    case SOFTSIGN: return x / (1.0f + size_of(x));
    case LEAKY_RELU: return where(x > all(0), x, (real)0.01 * x);
    case HARD_TANH: return bounded(x, -1.0f, 1.0f);
    default: return x;
  }
}
/* f'(u) written from h = f(u) */
INLINE vec slope(const int f, vec h) {
  switch (f) {
    case TANH: return 1.0f - h * h;
    case RELU: return where(h > all(0), all(1), all(0));
    case SIGMOID: return h * (1.0f - h);
    case SOFTSIGN: return (1.0f - size_of(h)) * (1.0f - size_of(h));
    case LEAKY_RELU: return where(h > all(0), all(1), all((real)0.01));
    case HARD_TANH: return where(size_of(h) < all(1), all(1), all(0));
    default: return all(1);
  }
}

/* ---- cells: one row of one step ------------------------------------------------------------------------------- */

enum { VANILLA, GRU, LSTM };

static const int GATES[] = {1, 3, 4};    /* widths in units of H: of Z, */
static const int KEPT[] = {0, 4, 5};     /* of what a step keeps beside h: r z n q; i f g o c */
static const int ADJOINTS[] = {1, 4, 4}; /* of a: GRU r z n q */

INLINE void forward_row(const int cell, const int f, int H, const real *z, const real *u, const real *before, real *c,
                        real *h, real *kept) {
  if (cell == VANILLA) EACH(H) AT(h + j) = activate(f, GET(z + j));
  if (cell == GRU) EACH(H) {
      vec r = sigmoid_of(GET(z + j)), gate = sigmoid_of(GET(z + H + j)), q = GET(u + j);
      vec n = activate(f, GET(z + 2 * H + j) + r * q);
      AT(h + j) = n + gate * (GET(before + j) - n);
      AT(kept + j) = r, AT(kept + H + j) = gate, AT(kept + 2 * H + j) = n, AT(kept + 3 * H + j) = q;
    }
  if (cell == LSTM) EACH(H) {
      vec i = sigmoid_of(GET(z + j)), forget = sigmoid_of(GET(z + H + j)), g = activate(f, GET(z + 2 * H + j));
      vec o = sigmoid_of(GET(z + 3 * H + j)), now = forget * GET(c + j) + i * g;
      AT(c + j) = now, AT(h + j) = o * activate(f, now);
      AT(kept + j) = i, AT(kept + H + j) = forget, AT(kept + 2 * H + j) = g, AT(kept + 3 * H + j) = o;
      AT(kept + 4 * H + j) = now;
    }
}

/* g = dL/dh_t becomes what reaches h_{t-1} directly; a = dL/dZ_t */
INLINE void backward_row(const int cell, const int f, int H, const real *h, const real *kept, const real *before,
                         const real *c_before, real *g, real *gc, real *a) {
  if (cell == VANILLA) EACH(H) AT(a + j) = slope(f, GET(h + j)) * GET(g + j);
  if (cell == GRU) EACH(H) {
      vec r = GET(kept + j), z = GET(kept + H + j), n = GET(kept + 2 * H + j), q = GET(kept + 3 * H + j), gh = GET(g + j);
      vec a_n = gh * (1.0f - z) * slope(f, n), a_q = a_n * r;
      AT(a + j) = a_q * q * (1.0f - r), AT(a + H + j) = gh * (GET(before + j) - n) * z * (1.0f - z);
      AT(a + 2 * H + j) = a_n, AT(a + 3 * H + j) = a_q, AT(g + j) = gh * z;
    }
  if (cell == LSTM) EACH(H) {
      vec i = GET(kept + j), forget = GET(kept + H + j), gate = GET(kept + 2 * H + j), o = GET(kept + 3 * H + j);
      vec s = activate(f, GET(kept + 4 * H + j)), gh = GET(g + j), g_c = GET(gc + j) + gh * o * slope(f, s);
      AT(a + j) = g_c * gate * i * (1.0f - i);
      AT(a + H + j) = g_c * GET(c_before + j) * forget * (1.0f - forget);
      AT(a + 2 * H + j) = g_c * i * slope(f, gate), AT(a + 3 * H + j) = gh * s * o * (1.0f - o);
      AT(gc + j) = g_c * forget;
    }
}

#define BY_ACTIVATION(row, cell, ...) \
  switch (f) { \
    case TANH: row(cell, TANH, __VA_ARGS__); break; \
    case RELU: row(cell, RELU, __VA_ARGS__); break; \
    case SIGMOID: row(cell, SIGMOID, __VA_ARGS__); break; \
    case SOFTSIGN: row(cell, SOFTSIGN, __VA_ARGS__); break; \
    case LEAKY_RELU: row(cell, LEAKY_RELU, __VA_ARGS__); break; \
    case HARD_TANH: row(cell, HARD_TANH, __VA_ARGS__); break; \
    default: row(cell, IDENTITY, __VA_ARGS__); \
  }
#define BY_CELL(row, ...) \
  switch (cell) { \
    case VANILLA: BY_ACTIVATION(row, VANILLA, __VA_ARGS__) break; \
    case GRU: row(GRU, f, __VA_ARGS__); break; \
    default: row(LSTM, f, __VA_ARGS__); \
  }

static __attribute__((noinline)) void forward_cell(int cell, int f, int H, const real *z, const real *u,
                                                   const real *before, real *c, real *h, real *kept) {
  BY_CELL(forward_row, H, z, u, before, c, h, kept)
}
static __attribute__((noinline)) void backward_cell(int cell, int f, int H, const real *h, const real *kept,
                                                    const real *before, const real *c_before, real *g, real *gc,
                                                    real *a) {
  BY_CELL(backward_row, H, h, kept, before, c_before, g, gc, a)
}

/* ---- one call ------------------------------------------------------------------------------------------------- */

typedef struct {
  const XLA_FFI_CallFrame *call;
  int cell, f, reverse, T, B, D, H, parts, G, R, A; /* D = 0: x holds W_xh x + b */
  int wide; /* D, filled up to whole vectors */
  int gates; /* rows of W_hh that go into Z at once: of the GRU all but those of q */
  int loose; /* so few rows that W_hh is not packed */
  const real *x, *W_xh, *W_hh, *b, *b_q;
  const int32_t *length;
  const real *ys, *kept, *g_state, *g_cell, *g_ys; /* backward; g_ys may be NULL */
  real *y, *keep, *state, *c_state;                /* forward */
  real *dx, *dW_xh, *dW_hh, *db, *db_q;            /* backward */
  real *packed_x, *packed_h, *packed_q, *zeros, *sums; /* room that all parts read; sums: one set per part */
  size_t sum_size;
  int32_t *order; /* rows, longest first */
} Call;

/* one part writes what it sums up where the caller wants it */
static int alone(const Call *s) { return s->parts == 1 && s->wide == s->D; }

static int longer(const Call *s, int row, int t) { return s->length[row] > t; }

/* The rows of one part, longest first, and how many of them are alive at each step. */
typedef struct {
  int n, T;
  int32_t *row, *alive;
} Part;

#define DEALT 4 /* neighbours: two cores that write into one line of the cache wait for each other */
static int most_rows(const Call *s) { return s->B / s->parts + 2 * DEALT + 1; }

/* rows are dealt there and back, 0 1 1 0 0 1 1 0, so that no part gets the longer ones every time */
static Part part_of(const Call *s, int p, Room *room) {
  Part part = {0};
  part.row = take(room, sizeof(int32_t) * most_rows(s));
  for (int i = 0; i < s->B; i++) {
    int turn = i / DEALT % (2 * s->parts);
    if ((turn < s->parts ? turn : 2 * s->parts - 1 - turn) == p) part.row[part.n++] = s->order[i];
  }
  part.T = part.n ? s->length[part.row[0]] : 0;
  part.alive = take(room, sizeof(int32_t) * (part.T + 1));
  for (int t = 0, n = part.n; t <= part.T; t++) {
    while (n && !longer(s, part.row[n - 1], t)) n--;
    part.alive[t] = n;
  }
  return part;
}

/* the step read before t, and how many rows have one */
static int before_of(const Call *s, int t) { return s->reverse ? t + 1 : t - 1; }
static int with_before(const Call *s, const Part *part, int t) {
  return s->reverse ? part->alive[t + 1] : t ? part->alive[t] : 0;
}
static size_t index_of(const Call *s, int t, int row) { return (size_t)t * s->B + row; }

/* steps [first, *end) of a part's order of visits: about CHUNK rows; -> rows */
static int chunk(const Part *part, int first, int *end, int backwards) {
  int rows = 0, step = first;
  do rows += part->alive[backwards ? part->T - 1 - step : step];
  while (++step < part->T && rows + part->alive[backwards ? part->T - 1 - step : step] <= CHUNK);
  *end = step;
  return rows;
}

/* products with rows [from, from + N) of W_hh: W_hh a and a W_hh */
static void onward(const Call *s, int M, int N, int from, const real *const *a, real *const *c, int mode,
                   const real *bias) {
  if (!s->loose) product(M, N, s->H, a, from ? s->packed_q : s->packed_h, c, mode, bias);
  else
    for (int i = 0; i < M; i++) dots(N, s->H, a[i], s->W_hh + (size_t)from * s->H, c[i], mode, bias);
}
static void backward(const Call *s, int M, int N, int from, const real *const *a, real *const *c, int mode) {
  if (!s->loose) product(M, s->H, N, a, from ? s->packed_q : s->packed_h, c, mode, NULL);
  else
    for (int i = 0; i < M; i++) axpys(s->H, N, a[i], s->W_hh + (size_t)from * s->H, c[i], mode);
}

/* out[T][B][width] = 0 past the end of each row: for a share of neighbouring rows, since those that have ended at a step are
   mostly neighbours, and one call for all of them is faster */
static void silence(const Call *s, int p, real *out, int width) {
  int from = (int64_t)s->B * p / s->parts, to = (int64_t)s->B * (p + 1) / s->parts;
  for (int t = 0; t < s->T; t++)
    for (int row = from, end; row < to; row = end + 1) {
      for (end = row; end < to && !longer(s, end, t); end++) {}
      if (end > row) memset(out + index_of(s, t, row) * width, 0, sizeof(real) * width * (end - row));
    }
}

static size_t room_of_part(const Call *s) {
  size_t rows = most_rows(s), most = CHUNK + rows, pointer = sizeof(real *) * most;
  size_t width = s->G > s->A ? s->G : s->A;
  size_t numbers = most * (width + 2 * s->wide) + 4 * rows * s->H;
  size_t bytes = sizeof(int32_t) * (rows + s->T + 1) + sizeof(real) * numbers + 8 * pointer;
  return (bytes + 4096) / 64 * 64;
}

static char *rooms(const Call *s) { return (char *)(s->sums + s->sum_size * s->parts); }

static void forward_part(void *given, int p) {
  Call *s = given;
  const int H = s->H, G = s->G, cell = s->cell, f = s->f;
  Room room = {rooms(s) + room_of_part(s) * p};
  Part part = part_of(s, p, &room);
  int most = CHUNK + part.n;
  real *Z = take(&room, sizeof(real) * most * G), *u = take(&room, sizeof(real) * part.n * H);
  real *c = take(&room, sizeof(real) * part.n * H);
  const real **a = take(&room, sizeof *a * most);
  real **z = take(&room, sizeof *z * most), **q = take(&room, sizeof *q * part.n);
  for (int i = 0; i < most; i++) z[i] = Z + (size_t)i * G;
  for (int i = 0; i < part.n; i++) q[i] = u + (size_t)i * H;
  memset(c, 0, sizeof(real) * part.n * H);
  for (int first = 0, end; first < part.T; first = end) {
    int rows = chunk(&part, first, &end, s->reverse), m = 0;
    for (int step = first; step < end; step++) {
      int t = s->reverse ? part.T - 1 - step : step;
      for (int i = 0; i < part.alive[t]; i++) {
        a[m] = s->x + index_of(s, t, part.row[i]) * (s->D ? s->D : G);
        prefetch(a[m++], s->D ? s->D : G);
      }
    }
    if (s->D) product(rows, G, s->D, a, s->packed_x, z, SET, s->b);
    else
      for (int i = 0; i < rows; i++) memcpy(z[i], a[i], sizeof(real) * G);
    m = 0;
    for (int step = first; step < end; step++) {
      int t = s->reverse ? part.T - 1 - step : step, n = part.alive[t], old = with_before(s, &part, t);
      for (int i = 0; i < old; i++) a[i] = s->y + index_of(s, before_of(s, t), part.row[i]) * H;
      for (int i = old; i < n; i++) a[i] = s->zeros;
      onward(s, old, s->gates, 0, a, z + m, ADD, NULL);
      if (cell == GRU) onward(s, n, H, s->gates, a, q, SET, s->b_q);
      for (int i = 0; i < n; i++) {
        size_t at = index_of(s, t, part.row[i]);
        forward_cell(cell, f, H, z[m + i], q[i], a[i], c + (size_t)i * H, s->y + at * H, s->keep + at * s->R);
      }
      m += n;
    }
  }
  for (int i = 0; i < part.n; i++) {
    int row = part.row[i], length = s->length[row];
    const real *last = length > 0 ? s->y + index_of(s, s->reverse ? 0 : length - 1, row) * H : s->zeros;
    memcpy(s->state + (size_t)row * H, last, sizeof(real) * H);
    if (cell == LSTM) memcpy(s->c_state + (size_t)row * H, c + (size_t)i * H, sizeof(real) * H);
  }
  silence(s, p, s->y, H);
}

/* the sums of one part: dW_xh [G, D], dW_hh [G, H], db [G], db_q [H] */
static void backward_part(void *given, int p) {
  Call *s = given;
  const int H = s->H, G = s->G, A = s->A, D = s->D, wide = s->wide, cell = s->cell, f = s->f, of_x = D ? D : G;
  Room room = {rooms(s) + room_of_part(s) * p};
  Part part = part_of(s, p, &room);
  int most = CHUNK + part.n;
  real *adjoint = take(&room, sizeof(real) * most * A);
  real *g = take(&room, sizeof(real) * part.n * H), *gc = take(&room, sizeof(real) * part.n * H);
  const real **a = take(&room, sizeof *a * most), **x = take(&room, sizeof *x * most);
  const real **h = take(&room, sizeof *h * most), **shifted = take(&room, sizeof *shifted * most);
  real **dx = take(&room, sizeof *dx * most), **back = take(&room, sizeof *back * part.n);
  real **into = D == wide ? dx : take(&room, sizeof *into * most); /* rows of whole vectors, copied from and to D numbers */
  real *filled_x = take(&room, sizeof(real) * most * wide), *filled_dx = take(&room, sizeof(real) * most * wide);
  size_t x_size = (size_t)G * wide, h_size = (size_t)G * H;
  real *dW_xh = s->sums + s->sum_size * p, *dW_hh = dW_xh + x_size, *db = dW_hh + h_size, *db_q = db + G;
  if (alone(s)) dW_xh = s->dW_xh, dW_hh = s->dW_hh, db = s->db, db_q = s->db_q;
  memset(dW_xh, 0, sizeof(real) * x_size), memset(dW_hh, 0, sizeof(real) * h_size);
  memset(db, 0, sizeof(real) * G), memset(db_q, 0, sizeof(real) * H);
  for (int i = 0; i < most; i++) a[i] = adjoint + (size_t)i * A;
  if (D != wide) memset(filled_x, 0, sizeof(real) * most * wide);
  for (int i = 0; i < part.n; i++) {
    back[i] = g + (size_t)i * H;
    memcpy(back[i], s->g_state + (size_t)part.row[i] * H, sizeof(real) * H);
    if (cell == LSTM) memcpy(gc + (size_t)i * H, s->g_cell + (size_t)part.row[i] * H, sizeof(real) * H);
  }
  for (int first = 0, end; first < part.T; first = end) {
    int rows = chunk(&part, first, &end, !s->reverse), m = 0;
    for (int step = first; step < end; step++) {
      int t = s->reverse ? step : part.T - 1 - step, n = part.alive[t], old = with_before(s, &part, t);
      for (int i = 0; i < n; i++) {
        size_t at = index_of(s, t, part.row[i]), then = index_of(s, before_of(s, t), part.row[i]);
        x[m + i] = s->x + at * of_x, dx[m + i] = s->dx + at * of_x;
        h[m + i] = i < old ? s->ys + then * H : s->zeros;
        prefetch(x[m + i], of_x), prefetch(h[m + i], H);
        const real *c_before = cell == LSTM && i < old ? s->kept + then * s->R + 4 * H : s->zeros;
        if (s->g_ys) EACH(H) AT(back[i] + j) += GET(s->g_ys + at * H + j);
        backward_cell(cell, f, H, s->ys + at * H, s->kept + at * s->R, h[m + i], c_before, back[i], gc + (size_t)i * H,
                      (real *)a[m + i]);
      }
      if (cell == GRU) {
        for (int i = 0; i < old; i++) shifted[i] = a[m + i] + 3 * H;
        backward(s, old, s->gates, 0, a + m, back, ADD);
        backward(s, old, H, s->gates, shifted, back, ADD);
      } else
        backward(s, old, G, 0, a + m, back, SET);
      m += n;
    }
    if (D) {
      for (int i = 0; D != wide && i < rows; i++) {
        into[i] = filled_dx + (size_t)i * wide;
        x[i] = memcpy(filled_x + (size_t)i * wide, x[i], sizeof(real) * D);
      }
      product(rows, wide, G, a, s->packed_x, into, SET, NULL);
      outer(G, wide, rows, adjoint, A, x, dW_xh);
      for (int i = 0; D != wide && i < rows; i++) memcpy(dx[i], into[i], sizeof(real) * D);
      for (int i = 0; i < rows; i++) EACH(G) AT(db + j) += GET(a[i] + j);
    } else
      for (int i = 0; i < rows; i++) memcpy(dx[i], a[i], sizeof(real) * G);
    int old = rows; /* of them: those that have a step before them, but for a few of a layer in reverse */
    if (!s->reverse && end == part.T) old -= part.alive[0];
    outer(s->gates, H, old, adjoint, A, h, dW_hh);
    if (cell == GRU) {
      outer(H, H, old, adjoint + 3 * H, A, h, dW_hh + (size_t)2 * H * H);
      for (int i = 0; i < rows; i++) EACH(H) AT(db_q + j) += GET(a[i] + 3 * H + j);
    }
  }
  silence(s, p, s->dx, of_x);
}

/* rows, longest first; equal ones as they came; count: room for T + 2 */
static void sort(Call *s, int32_t *count) {
  memset(count, 0, sizeof *count * (s->T + 2));
  for (int row = 0; row < s->B; row++) count[s->T - s->length[row] + 1]++;
  for (int i = 1; i <= s->T + 1; i++) count[i] += count[i - 1];
  for (int row = 0; row < s->B; row++) s->order[count[s->T - s->length[row]]++] = row;
}

/* arguments of both: settings [4] int32 (cell, activation, reverse, has g_ys), x [T, B, D or G], length [B], W_xh [G, D],
   W_hh [G, H], b [G], b_q [H] */
static int opened(Call *s, const XLA_FFI_CallFrame *call, int backwards) {
  const int32_t *settings = argument(call, 0);
  *s = (Call){.call = call, .cell = settings[0], .f = settings[1], .reverse = settings[2]};
  s->x = argument(call, 1), s->W_xh = argument(call, 3), s->W_hh = argument(call, 4);
  s->b = argument(call, 5), s->b_q = argument(call, 6);
  s->T = size(call, 1, 0), s->B = size(call, 1, 1), s->D = size(call, 3, 1), s->H = size(call, 4, 1);
  s->G = GATES[s->cell] * s->H, s->R = KEPT[s->cell] * s->H, s->A = ADJOINTS[s->cell] * s->H;
  int threads = jaxrnn_cores, most = s->B / 8 > 1 ? s->B / 8 : 1;
  double work = 2.0 * s->B * s->T * s->G * (s->D + s->H);
  s->parts = work < 4e6 || threads == 1 ? 1 : threads < most ? threads : most;
  s->wide = filled(s->D), s->gates = s->cell == GRU ? 2 * s->H : s->G;
  s->loose = s->B == 1 || (int64_t)s->B * s->T <= LOOSE;
  s->sum_size = backwards ? (size_t)s->G * (s->wide + s->H) + s->G + s->H : 0;
  size_t x_size = (size_t)s->wide * s->G, h_size = (size_t)s->H * s->G, widest = s->G > s->wide ? s->G : s->wide;
  size_t numbers = x_size + h_size + widest + s->sum_size * s->parts;
  char *at = room_for(sizeof(real) * numbers + sizeof(int32_t) * (2 * s->B + s->T + 2) + 576 + room_of_part(s) * s->parts);
  if (!at) return 0;
  Room room = {at};
  s->order = take(&room, sizeof(int32_t) * s->B);
  int32_t *length = take(&room, sizeof(int32_t) * s->B);
  for (int row = 0; row < s->B; row++) {
    int n = ((const int32_t *)argument(call, 2))[row];
    length[row] = n < 0 ? 0 : n > s->T ? s->T : n;
  }
  s->length = length;
  int32_t *count = take(&room, sizeof(int32_t) * (s->T + 2));
  s->zeros = take(&room, sizeof(real) * widest);
  s->packed_x = take(&room, sizeof(real) * x_size);
  s->packed_h = take(&room, sizeof(real) * h_size);
  s->sums = (real *)room.at;
  memset(s->zeros, 0, sizeof(real) * widest);
  sort(s, count);
  int H = s->H, D = s->D, rz = s->gates;
  s->packed_q = s->packed_h + (size_t)rz * H;
  if (backwards) { /* a W */
    if (D) pack(s->G, D, s->W_xh, D, 1, s->packed_x);
    if (s->loose) return 1;
    pack(rz, H, s->W_hh, H, 1, s->packed_h);
    if (s->cell == GRU) pack(H, H, s->W_hh + (size_t)rz * H, H, 1, s->packed_q);
  } else { /* x W^T */
    if (D) pack(D, s->G, s->W_xh, 1, D, s->packed_x);
    if (s->loose) return 1;
    pack(H, rz, s->W_hh, 1, H, s->packed_h);
    if (s->cell == GRU) pack(H, H, s->W_hh + (size_t)rz * H, 1, H, s->packed_q);
  }
  return 1;
}

/* -> ys [T, B, H], state [B, H], kept [T, B, R], cell state [B, H] (LSTM) */
XLA_FFI_Error *jaxrnn_forward(XLA_FFI_CallFrame *call) {
  if (ASKED_WHAT_IT_IS(call)) return described(call);
  Call s;
  if (!opened(&s, call, 0)) return failed(call, "out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
  s.y = result(call, 0), s.state = result(call, 1), s.keep = result(call, 2), s.c_state = result(call, 3);
  jaxrnn_in_parallel(s.parts, s.parts, forward_part, &s);
  give_back((char *)s.order);
  return NULL;
}

/* into[rows][width] = the sum over parts of what stands `from` numbers into their sums, of which each row is `wide` */
static void sum_parts(const Call *s, int rows, int wide, int width, size_t from, real *into) {
  for (int i = 0; i < rows; i++, into += width, from += wide)
    for (int j = 0; j < width; j += VW) {
      vec sum = GET(s->sums + from + j);
      for (int p = 1; p < s->parts; p++) sum += GET(s->sums + s->sum_size * p + from + j);
      if (width - j >= VW) AT(into + j) = sum;
      else memcpy(into + j, &sum, sizeof(real) * (width - j));
    }
}

/* more arguments: ys, kept, g_state [B, H], g_cell [B, H], g_ys [T, B, H]
   -> dx as x, dW_xh, dW_hh, db [G], db_q [H] */
XLA_FFI_Error *jaxrnn_backward(XLA_FFI_CallFrame *call) {
  if (ASKED_WHAT_IT_IS(call)) return described(call);
  Call s;
  if (!opened(&s, call, 1)) return failed(call, "out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
  s.ys = argument(call, 7), s.kept = argument(call, 8), s.g_state = argument(call, 9), s.g_cell = argument(call, 10);
  s.g_ys = ((const int32_t *)argument(call, 0))[3] ? argument(call, 11) : NULL;
  s.dx = result(call, 0), s.dW_xh = result(call, 1), s.dW_hh = result(call, 2), s.db = result(call, 3);
  s.db_q = result(call, 4);
  jaxrnn_in_parallel(s.parts, s.parts, backward_part, &s);
  if (!alone(&s)) {
    size_t from = (size_t)s.G * s.wide;
    sum_parts(&s, s.G, s.wide, s.D, 0, s.dW_xh);
    sum_parts(&s, s.G, s.H, s.H, from, s.dW_hh);
    sum_parts(&s, 1, s.G, s.G, from += (size_t)s.G * s.H, s.db);
    sum_parts(&s, 1, s.H, s.H, from + s.G, s.db_q);
  }
  give_back((char *)s.order);
  return NULL;
}
