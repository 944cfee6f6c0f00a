/* A wide embedding table under Adam, its rows brought up to date when they are read: the formulas are those of tables.py.

   read      the places of the words that exist, sorted by id; the row of each, as it is after all updates so far
   collect   one gradient for every id, the sum over its places, and its squared norm
   move      one update of these rows, in place; nothing is written if a number would not be finite

   The work is that of the ids a batch holds; padding is only filled with zeros. Every id is one thread's, and sums are
   taken in the order of the places: the bits do not depend on the number of threads. */

#include "foreign.h"

#define CHUNK 32 /* ids of a task */
#define DIGIT 11 /* bits of an id that one pass of the sort looks at */

typedef struct {
  int T, B, V, E, ids;                              /* `ids`: how many different ones */
  const int32_t *id, *length, *since, *place, *first; /* id g stands at place[first[g]] .. place[first[g + 1] - 1] */
  const real *table, *mu, *nu, *drift, *shrink;
  const real *gradient;
  real b1, b2, eps, rate, decay, rows, limit, scale;
  int now, count;
  real *x, *sum, *part, *moved; /* `part`: squares of each task; `moved`: rows before they are written */
  real *to_table, *to_mu, *to_nu;
  int32_t *to_since;
  atomic_int wrong;
} Call;

INLINE vec load(const real *from, int n) {
  if (n >= VW) return *(const vec *)from;
  vec x = {0};
  memcpy(&x, from, sizeof(real) * n);
  return x;
}
INLINE void store(real *to, vec x, int n) {
  if (n >= VW) *(vec *)to = x;
  else memcpy(to, &x, sizeof(real) * n);
}
#ifdef DOUBLE
#define ROOT sqrt
#else
#define ROOT sqrtf
#endif
INLINE vec root(vec x) {
  for (int i = 0; i < VW; i++) x[i] = ROOT(x[i]);
  return x;
}
INLINE vec bounded(vec x, real limit) {
  for (int i = 0; i < VW; i++) x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
  return x;
}
static real total(vec x) {
  real sum = 0;
  for (int i = 0; i < VW; i++) sum += x[i];
  return sum;
}

/* The places of real words, by id, equal ones as they come in time; room for two lists of places. */
static void sort(Call *s, int32_t *place, int32_t *first, int32_t *spare_place) {
  int n = 0, count[1 << DIGIT];
  for (int t = 0; t < s->T; t++)
    for (int b = 0; b < s->B; b++)
      if (t < s->length[b]) place[n++] = t * s->B + b;
  int32_t *from = place, *to = spare_place;
  for (int shift = 0; (s->V - 1) >> shift; shift += DIGIT) {
    memset(count, 0, sizeof count);
    for (int i = 0; i < n; i++) count[s->id[from[i]] >> shift & ((1 << DIGIT) - 1)]++;
    for (int digit = 0, sum = 0; digit < 1 << DIGIT; digit++) {
      int here = count[digit];
      count[digit] = sum, sum += here;
    }
    for (int i = 0; i < n; i++) to[count[s->id[from[i]] >> shift & ((1 << DIGIT) - 1)]++] = from[i];
    int32_t *swap = from;
    from = to, to = swap;
  }
  if (from != place) memcpy(place, from, sizeof *place * n);
  s->ids = 0;
  for (int i = 0; i < n; i++)
    if (i == 0 || s->id[place[i]] != s->id[place[i - 1]]) first[s->ids++] = i;
  first[s->ids] = n;
}

/* What has become of a row that was last moved at `since`. */
typedef struct {
  int missed;
  real drift, shrink, e, m, v;
} Behind;

static Behind behind(const Call *s, int id) {
  int since = s->since[id], missed = s->now - since;
  if (!missed) return (Behind){0, 0, 1, 0, 1, 1};
  real first = s->count - s->now + since + 1;
  return (Behind){missed, s->drift[since], s->shrink[since], s->eps * sqrt((1 - pow(s->b2, first)) / s->b2),
                  pow(s->b1, missed), pow(s->b2, missed)};
}
INLINE vec current(const Behind *b, vec p, vec m, vec v) {
  if (b->missed) p = b->shrink * p - b->drift * m / (root(v) + b->e);
  return p;
}

static int end_of(const Call *s, int task) { return (task + 1) * CHUNK < s->ids ? (task + 1) * CHUNK : s->ids; }

static void read_task(void *given, int task) {
  Call *s = given;
  int tasks = (s->ids + CHUNK - 1) / CHUNK, E = s->E;
  if (task >= tasks) { /* the padding of a step */
    int t = task - tasks;
    for (int b = 0; b < s->B; b++)
      if (t >= s->length[b]) memset(s->x + ((size_t)t * s->B + b) * E, 0, sizeof(real) * E);
    return;
  }
  for (int g = task * CHUNK; g < end_of(s, task); g++) {
    int id = s->id[s->place[s->first[g]]];
    size_t at = (size_t)id * E;
    Behind b = behind(s, id);
    real *row = s->x + (size_t)s->place[s->first[g]] * E;
    for (int j = 0; j < E; j += VW)
      store(row + j, current(&b, load(s->table + at + j, E - j), load(s->mu + at + j, E - j),
                             load(s->nu + at + j, E - j)), E - j);
    for (int i = s->first[g] + 1; i < s->first[g + 1]; i++)
      memcpy(s->x + (size_t)s->place[i] * E, row, sizeof(real) * E);
  }
}

static void collect_task(void *given, int task) {
  Call *s = given;
  int E = s->E;
  vec square = {0}, clipped = {0};
  for (int g = task * CHUNK; g < end_of(s, task); g++)
    for (int j = 0; j < E; j += VW) {
      vec sum = {0};
      for (int i = s->first[g]; i < s->first[g + 1]; i++)
        sum += load(s->gradient + (size_t)s->place[i] * E + j, E - j);
      store(s->sum + (size_t)g * E + j, sum, E - j);
      vec mean = bounded(sum / s->rows, s->limit);
      square += sum * sum, clipped += mean * mean;
    }
  s->part[2 * task] = total(square), s->part[2 * task + 1] = total(clipped);
}

/* The moments of row `id` after this update, from its gradient g. */
INLINE void moments(const Call *s, const Behind *b, vec g, vec *m, vec *v) {
  *m = s->b1 * (b->m * *m) + (1 - s->b1) * g;
  *v = s->b2 * (b->v * *v) + (1 - s->b2) * g * g;
}
INLINE vec gradient_of(const Call *s, int g, int j) {
  return s->scale * bounded(load(s->sum + (size_t)g * s->E + j, s->E - j) / s->rows, s->limit);
}

static void move_task(void *given, int task) {
  Call *s = given;
  int E = s->E;
  real first = 1 - pow(s->b1, s->count + 1), second = 1 - pow(s->b2, s->count + 1);
  vec wrong = {0};
  for (int g = task * CHUNK; g < end_of(s, task); g++) {
    int id = s->id[s->place[s->first[g]]];
    size_t at = (size_t)id * E;
    Behind b = behind(s, id);
    for (int j = 0; j < E; j += VW) {
      vec p = load(s->table + at + j, E - j), m = load(s->mu + at + j, E - j), v = load(s->nu + at + j, E - j);
      p = current(&b, p, m, v);
      moments(s, &b, gradient_of(s, g, j), &m, &v);
      p -= s->rate * (m / first / (root(v / second) + s->eps) + s->decay * p);
      wrong += 0 * p; /* NaN where p is not finite */
      store(s->moved + (size_t)g * E + j, p, E - j);
    }
  }
  if (total(wrong) != 0) atomic_store(&s->wrong, 1);
}

static void write_task(void *given, int task) {
  Call *s = given;
  int E = s->E;
  for (int g = task * CHUNK; g < end_of(s, task); g++) {
    int id = s->id[s->place[s->first[g]]];
    size_t at = (size_t)id * E;
    Behind b = behind(s, id);
    for (int j = 0; j < E; j += VW) {
      vec m = load(s->mu + at + j, E - j), v = load(s->nu + at + j, E - j);
      moments(s, &b, gradient_of(s, g, j), &m, &v);
      store(s->to_mu + at + j, m, E - j), store(s->to_nu + at + j, v, E - j);
    }
    memcpy(s->to_table + at, s->moved + (size_t)g * E, sizeof(real) * E);
    s->to_since[id] = s->now + 1;
  }
}

static void run(const XLA_FFI_CallFrame *call, Call *s, void (*task)(void *, int), int more) {
  int threads = (size_t)s->ids * s->E < 1 << 14 ? 1 : threads_of(call);
  in_parallel(call, threads, (s->ids + CHUNK - 1) / CHUNK + more, task, s);
}

/* What two of the calls are given: table, mu, nu [V, E], since [V], drift, shrink [S + 1], counts, numbers */
static Call with_table(const XLA_FFI_CallFrame *call, int counts, int numbers) {
  const int32_t *count = argument(call, counts);
  const real *number = argument(call, numbers);
  return (Call){.V = size(call, 0, 0), .E = size(call, 0, 1), .table = argument(call, 0), .mu = argument(call, 1),
                .nu = argument(call, 2), .since = argument(call, 3), .drift = argument(call, 4),
                .shrink = argument(call, 5), .now = count[0], .count = count[1], .b1 = number[0], .b2 = number[1],
                .eps = number[2]};
}

/* more: counts [2] (updates of the epoch, of Adam), numbers [3] (b1, b2, eps), ids [T, B], length [B]
   -> x [T, B, E], place [T * B], first [T * B + 1], how many ids [1] */
XLA_FFI_Error *jaxrnn_rows_read(XLA_FFI_CallFrame *call) {
  if (ASKED_WHAT_IT_IS(call)) return described(call);
  Call s = with_table(call, 6, 7);
  s.id = argument(call, 8), s.length = argument(call, 9), s.T = size(call, 8, 0), s.B = size(call, 8, 1);
  s.x = result(call, 0), s.place = result(call, 1), s.first = result(call, 2);
  char *room = room_for(sizeof(int32_t) * s.T * s.B);
  if (!room) return failed(call, "out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
  sort(&s, (int32_t *)s.place, (int32_t *)s.first, (int32_t *)room);
  give_back(room);
  *(int32_t *)result(call, 3) = s.ids;
  run(call, &s, read_task, s.T);
  return NULL;
}

/* gradient [T, B, E], place, first, how many, numbers [2] (rows of the batch, elementwise limit)
   -> sum [T * B, E], of which so many rows are written; squared norm [2], of it and of clip(sum / rows) */
XLA_FFI_Error *jaxrnn_rows_collect(XLA_FFI_CallFrame *call) {
  if (ASKED_WHAT_IT_IS(call)) return described(call);
  const real *number = argument(call, 4);
  Call s = {.E = size(call, 0, 2), .gradient = argument(call, 0), .place = argument(call, 1), .rows = number[0],
            .first = argument(call, 2), .ids = *(int32_t *)argument(call, 3), .limit = number[1]};
  s.sum = result(call, 0);
  int tasks = (s.ids + CHUNK - 1) / CHUNK;
  char *room = room_for(sizeof(real) * 2 * (tasks + 1));
  if (!room) return failed(call, "out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
  s.part = (real *)room;
  run(call, &s, collect_task, 0);
  real *square = result(call, 1);
  square[0] = square[1] = 0;
  for (int task = 0; task < tasks; task++) square[0] += s.part[2 * task], square[1] += s.part[2 * task + 1];
  give_back(room);
  return NULL;
}

static void *in_place(const XLA_FFI_CallFrame *call, int i, size_t bytes) {
  if (result(call, i) != argument(call, i)) memcpy(result(call, i), argument(call, i), bytes);
  return result(call, i);
}

/* more: counts [3] (..., is all finite so far), numbers [8] (..., rate, decay, rows, limit, scale), ids, place, first, how
   many, sum -> table, mu, nu, since, drift, shrink in place; is all finite [1] */
XLA_FFI_Error *jaxrnn_rows_move(XLA_FFI_CallFrame *call) {
  if (ASKED_WHAT_IT_IS(call)) return described(call);
  Call s = with_table(call, 6, 7);
  const real *number = (real *)argument(call, 7) + 3;
  s.rate = number[0], s.decay = number[1], s.rows = number[2], s.limit = number[3], s.scale = number[4];
  s.id = argument(call, 8), s.place = argument(call, 9), s.first = argument(call, 10);
  s.ids = *(int32_t *)argument(call, 11), s.sum = argument(call, 12);
  size_t wide = sizeof(real) * s.V * s.E, steps = sizeof(real) * size(call, 4, 0);
  s.to_table = in_place(call, 0, wide), s.to_mu = in_place(call, 1, wide), s.to_nu = in_place(call, 2, wide);
  s.to_since = in_place(call, 3, sizeof(int32_t) * s.V);
  real *drift = in_place(call, 4, steps), *shrink = in_place(call, 5, steps);
  int32_t *finite = result(call, 6);
  *finite = ((int32_t *)argument(call, 6))[2];
  if (!*finite) return NULL;
  char *room = room_for(sizeof(real) * s.ids * s.E + 64);
  if (!room) return failed(call, "out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
  s.moved = (real *)room;
  run(call, &s, move_task, 0);
  *finite = !atomic_load(&s.wrong);
  if (*finite) {
    run(call, &s, write_task, 0);
    real keep = 1 - s.rate * s.decay, ratio = s.b1 / sqrt(s.b2);
    real more = s.rate * sqrt(1 - pow(s.b2, s.count + 1)) / (1 - pow(s.b1, s.count + 1));
    for (int since = s.now; since >= 0; since--) { /* rows that this update passed by */
      more = more > (real)1e-30 ? more * ratio : 0;
      drift[since] = keep * drift[since] + more, shrink[since] *= keep;
    }
  }
  give_back(room);
  return NULL;
}
