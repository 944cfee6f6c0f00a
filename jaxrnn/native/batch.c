/* The ends of a network as a call each, in place of some thirty small kernels of XLA:

   batch    the rows of one update as a rectangle of words
   rows     the embeddings of words, as they stand in the table: reading that is not training
   score    logits = W f + b of the features of each row, the softmax's loss, and its gradients

   score     p = softmax(W f + b)     L = sum_rows weight (-ln p_target)     a = weight (p - onehot(target))
             dL/df = W^T a            dL/dW = sum_rows a f^T                 dL/db = sum_rows a */

#include "foreign.h"

#ifdef DOUBLE
#define EXP exp
#define LOG log
#else
#define EXP expf
#define LOG logf
#endif
#define MOST 64 /* classes that `score` knows */

/* tokens [N], offset [R + 1], target [R], order [S, B], s [] -> inputs [B, T], length [B], target [B], weight [B]; row -1
   is filler of length and weight zero */
XLA_FFI_Error *jaxrnn_batch(XLA_FFI_CallFrame *call) {
  if (ASKED_WHAT_IT_IS(call)) return described(call);
  const int32_t *tokens = argument(call, 0), *offset = argument(call, 1), *target = argument(call, 2);
  const int B = size(call, 3, 1), T = ((XLA_FFI_Buffer *)call->rets.rets[0])->dims[1];
  const int32_t *row = (const int32_t *)argument(call, 3) + (size_t)B * *(const int32_t *)argument(call, 4);
  int32_t *inputs = result(call, 0), *length = result(call, 1), *targets = result(call, 2);
  real *weight = result(call, 3);
  for (int b = 0; b < B; b++, inputs += T) {
    int real_one = row[b] >= 0, r = real_one ? row[b] : 0, all_of_it = offset[r + 1] - offset[r];
    int n = !real_one ? 0 : all_of_it < T ? all_of_it : T;
    memcpy(inputs, tokens + offset[r], sizeof *inputs * n);
    memset(inputs + n, 0, sizeof *inputs * (T - n));
    length[b] = real_one ? all_of_it : 0, targets[b] = target[r], weight[b] = real_one;
  }
  return NULL;
}

typedef struct {
  int E, B;
  const real *table;
  const int32_t *id, *length;
  real *x;
} Reading;

static void rows_of_step(void *given, int t) {
  const Reading *s = given;
  const int32_t *id = s->id + (size_t)t * s->B;
  real *x = s->x + (size_t)t * s->B * s->E;
  for (int b = 0; b < s->B; b++, x += s->E)
    if (t < s->length[b]) memcpy(x, s->table + (size_t)id[b] * s->E, sizeof(real) * s->E);
    else memset(x, 0, sizeof(real) * s->E);
}

/* table [V, E], ids [T, B], length [B] -> x [T, B, E] */
XLA_FFI_Error *jaxrnn_rows(XLA_FFI_CallFrame *call) {
  if (ASKED_WHAT_IT_IS(call)) return described(call);
  const int T = size(call, 1, 0);
  Reading s = {.E = size(call, 0, 1), .B = size(call, 1, 1), .table = argument(call, 0), .id = argument(call, 1),
               .length = argument(call, 2), .x = result(call, 0)};
  jaxrnn_in_parallel((size_t)T * s.B * s.E < 1 << 16 ? 1 : jaxrnn_cores, T, rows_of_step, &s);
  return NULL;
}

/* features [B, F], W [C, F], b [C], target [B], weight [B]
   -> loss [], correct [], weight [] (sums over the rows), dL/dfeatures [B, F], dL/dW [C, F], dL/db [C] */
XLA_FFI_Error *jaxrnn_score(XLA_FFI_CallFrame *call) {
  if (ASKED_WHAT_IT_IS(call)) return described(call);
  const int B = size(call, 0, 0), F = size(call, 0, 1), C = size(call, 1, 0);
  const real *f = argument(call, 0), *W = argument(call, 1), *b = argument(call, 2), *weight = argument(call, 4);
  const int32_t *target = argument(call, 3);
  real *df = result(call, 3), *dW = result(call, 4), *db = result(call, 5);
  double loss = 0, correct = 0, rows = 0;
  memset(dW, 0, sizeof(real) * C * F), memset(db, 0, sizeof(real) * C);
  for (int row = 0; row < B; row++, f += F, df += F) {
    real z[MOST] = {0}, sum = 0;
    int best = 0;
    for (int c = 0; c < C; c++) {
      vec product = {0};
      const real *w = W + (size_t)c * F;
      VECTORS(F, product += load(w + j, n) * load(f + j, n));
      z[c] = total(product) + b[c];
      if (z[c] > z[best]) best = c;
    }
    real top = z[best], at_target = z[target[row]];
    for (int c = 0; c < C; c++) sum += z[c] = EXP(z[c] - top);
    if (weight[row] > 0) loss += weight[row] * (LOG(sum) + (top - at_target));
    correct += weight[row] * (best == target[row]), rows += weight[row];
    memset(df, 0, sizeof(real) * F);
    for (int c = 0; c < C; c++) {
      real a = weight[row] * (z[c] / sum - (c == target[row]));
      const real *w = W + (size_t)c * F;
      real *d = dW + (size_t)c * F;
      VECTORS(F, store(df + j, load(df + j, n) + a * load(w + j, n), n);
                 store(d + j, load(d + j, n) + a * load(f + j, n), n));
      db[c] += a;
    }
  }
  *(real *)result(call, 0) = loss, *(real *)result(call, 1) = correct, *(real *)result(call, 2) = rows;
  return NULL;
}
