/* Random bits as jax.random draws them: Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy
   as 1, 2, 3"), number i of the counter start + i, 64 bits. XLA:CPU takes ten kernels for each call of jax.random, of
   which a network's first parameters and its masks need two dozen. */

#include "foreign.h"

#define NUMBERS 16384 /* of a task; a multiple of every vector */
#define WORDS ((int)(BYTES / 4))

typedef uint32_t words __attribute__((vector_size(BYTES), aligned(4), may_alias));

typedef struct {
  uint32_t key[3], start;
  size_t count;
  int pairs; /* both words of each number, as keys are made; else their exclusive or, as bits are */
  uint32_t *out;
} Call;

#define ROUND(turn) x += y, y = (y << (turn)) | (y >> (32 - (turn))), y ^= x;
#define ROUNDS(a, b, c, d, n) \
  ROUND(a) ROUND(b) ROUND(c) ROUND(d) x += key[(n) % 3], y += key[((n) + 1) % 3] + (uint32_t)(n);

static void draw(void *given, int task) {
  Call *s = given;
  const uint32_t *key = s->key;
  words lane;
  for (int i = 0; i < WORDS; i++) lane[i] = i;
  size_t from = (size_t)task * NUMBERS, end = from + NUMBERS < s->count ? from + NUMBERS : s->count;
  for (size_t i = from; i < end; i += WORDS) {
    uint64_t at = s->start + (uint64_t)i; /* `start` is 0, or there is one number: no carry between lanes */
    words x = (words){0} + (uint32_t)(at >> 32) + key[0], y = lane + (uint32_t)at + key[1];
    ROUNDS(13, 15, 26, 6, 1)
    ROUNDS(17, 29, 16, 24, 2)
    ROUNDS(13, 15, 26, 6, 3)
    ROUNDS(17, 29, 16, 24, 4)
    ROUNDS(13, 15, 26, 6, 5)
    int n = end - i < (size_t)WORDS ? (int)(end - i) : WORDS;
    if (s->pairs)
      for (int k = 0; k < n; k++) s->out[2 * (i + k)] = x[k], s->out[2 * (i + k) + 1] = y[k];
    else if (n == WORDS) *(words *)(s->out + i) = x ^ y;
    else
      for (int k = 0; k < n; k++) s->out[i + k] = x[k] ^ y[k];
  }
}

/* key [2], start [1] -> bits [N], or keys [N, 2] */
XLA_FFI_Error *jaxrnn_threefry(XLA_FFI_CallFrame *call) {
  if (ASKED_WHAT_IT_IS(call)) return described(call);
  const uint32_t *key = argument(call, 0), *start = argument(call, 1);
  XLA_FFI_Buffer *out = call->rets.rets[0];
  Call s = {.key = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA}, .start = start[0], .count = out->dims[0],
            .pairs = out->rank == 2, .out = out->data};
  int tasks = (int)((s.count + NUMBERS - 1) / NUMBERS);
  jaxrnn_in_parallel(tasks > 1 ? jaxrnn_cores : 1, tasks, draw, &s);
  return NULL;
}

/* A [n, k], n >= k -> Q [n, k] of A = Q R, the diagonal of R positive: by Gram and Schmidt, each column twice, after which
   it is orthogonal to the others as far as its numbers can tell (Giraud, Langou, Rozloznik 2005) */
XLA_FFI_Error *jaxrnn_orthogonal(XLA_FFI_CallFrame *call) {
  if (ASKED_WHAT_IT_IS(call)) return described(call);
  const int n_rows = size(call, 0, 0), k = size(call, 0, 1);
  const real *a = argument(call, 0);
  real *out = result(call, 0), *columns = (real *)room_for(sizeof(real) * n_rows * k);
  if (!columns) return failed(call, "out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
  for (int c = 0; c < k; c++) {
    real *q = columns + (size_t)c * n_rows;
    for (int row = 0; row < n_rows; row++) q[row] = a[(size_t)row * k + c];
    for (int before = 0; before < 2 * c; before++) {
      const real *p = columns + (size_t)(before % c) * n_rows;
      vec sum = {0};
      VECTORS(n_rows, sum += load(p + j, n) * load(q + j, n));
      vec product = all(total(sum));
      VECTORS(n_rows, store(q + j, load(q + j, n) - product * load(p + j, n), n));
    }
    vec square = {0};
    VECTORS(n_rows, square += load(q + j, n) * load(q + j, n));
    real norm = sqrt(total(square));
    for (int row = 0; row < n_rows; row++) out[(size_t)row * k + c] = q[row] /= norm;
  }
  give_back((char *)columns);
  return NULL;
}
