/* One update of Adam, or of plain gradient descent, from the gradients of a batch to the parameters, as two calls: the formulas are those of
   tables.py (rows of an embedding table, brought up to date when they are read) and optimizers.py.

   read    the places of the words that exist, sorted by id; the row of each, as it is after all updates so far
   learn   the global norm of the gradient, the clips, Adam; nothing is written if a number would not be finite

   and a third at the end of an epoch, settle: every row brought up to date. The work of the first two is that of the ids
   a batch holds, whatever the table holds. Every row and every piece of an array is one
   thread's, and sums are taken in a fixed order: the bits do not depend on the number of threads. */

#include <float.h>

#include "foreign.h"

#define IDS 32 /* of a task */
#define PIECE 8192 /* numbers of a task */
#define DIGIT 11 /* bits of an id that one pass of the sort looks at */

#ifdef DOUBLE
#define ROOT sqrt
#define TINY DBL_MIN
#else
#define ROOT sqrtf
#define TINY FLT_MIN
#endif

typedef struct {
  const real *g;
  real *p, *m, *v, *moved; /* `moved`: what p becomes, before it is written */
  int size;
  real decay;
} Piece;

/* What has become of a row that was last moved so many updates ago. */
typedef struct {
  int missed;
  real drift, shrink, e, m, v;
} Behind;

/* What an update is told; share: 1 / rows; m_scale: 1 / (1 - b1^n). A task takes a copy, which no store can change. */
typedef struct {
  real b1, b2, eps, rate, decay, share, limit, scale, m_scale, v_scale;
} Numbers;

typedef struct {
  int T, B, V, E, ids;                                /* `ids`: how many different ones */
  const int32_t *id, *length, *place, *first; /* id g stands at place[first[g]] .. place[first[g + 1] - 1] */
  real *table, *mu, *nu, *drift, *shrink;
  int32_t *since;
  const real *gradient;
  Numbers k;
  int now, count, pieces;
  Piece *piece;
  const Behind *behind; /* of a row that stands at each update, or NULL */
  real *x, *sum, *moved, *square; /* `square`: two of each task */
  atomic_int wrong, large; /* a number that is not finite; one whose square is not */
} Call;

INLINE vec root(vec x) {
  for (int i = 0; i < VW; i++) x[i] = ROOT(x[i]);
  return x;
}
/* ---- rows of the table ---------------------------------------------------------------------------------------- */

/* The places of real words, by id, equal ones as they come in time; room for two lists of places. */
static void sort(Call *s, int32_t *place, int32_t *first, int32_t *spare_place) {
  int n = 0, count[1 << DIGIT];
  for (int t = 0; t < s->T; t++)
    for (int b = 0; b < s->B; b++)
      if (t < s->length[b]) place[n++] = t * s->B + b;
  int32_t *from = place, *to = spare_place;
  for (int shift = 0; shift < 31 && (s->V - 1) >> shift; shift += DIGIT) {
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

static Behind standing(const Call *s, int since) {
  int missed = s->now - since;
  if (!missed) return (Behind){0, 0, 1, 0, 1, 1};
  real first = s->count - s->now + since + 1;
  return (Behind){missed, s->drift[since], s->shrink[since], s->k.eps * sqrt((1 - pow(s->k.b2, first)) / s->k.b2),
                  pow(s->k.b1, missed), pow(s->k.b2, missed)};
}
/* As there are fewer updates than ids, powers are taken once for each update. */
static void remember(Call *s, Behind *room) {
  for (int n = 0; n <= s->now; n++) room[n] = standing(s, n);
  s->behind = room;
}
static Behind behind(const Call *s, int id) { return s->behind ? s->behind[s->since[id]] : standing(s, s->since[id]); }
INLINE vec current(const Behind *b, vec p, vec m, vec v) {
  if (b->missed) p = b->shrink * p - b->drift * m / (root(v) + b->e);
  return p;
}

static int tasks_of_ids(const Call *s) { return (s->ids + IDS - 1) / IDS; }
static int end_of(const Call *s, int task) { return (task + 1) * IDS < s->ids ? (task + 1) * IDS : s->ids; }
static int id_of(const Call *s, int g) { return s->id[s->place[s->first[g]]]; }
#define AHEAD 2 /* ids of which a task asks for the rows before it comes to them */
static void ask(const Call *s, int g) {
  if (g >= s->ids) return;
  size_t at = (size_t)id_of(s, g) * s->E;
  prefetch(s->table + at, s->E), prefetch(s->mu + at, s->E), prefetch(s->nu + at, s->E);
}

INLINE void read_some(const Behind *b, const real *p, const real *m, const real *v, real *row, int n) {
  store(row, current(b, load(p, n), load(m, n), load(v, n)), n);
}

static void read_task(void *given, int task) {
  Call *s = given;
  int tasks = tasks_of_ids(s), E = s->E;
  if (task >= tasks) { /* the padding of a step */
    int t = task - tasks;
    for (int b = 0; b < s->B; b++)
      if (t >= s->length[b]) memset(s->x + ((size_t)t * s->B + b) * E, 0, sizeof(real) * E);
    return;
  }
  for (int g = task * IDS; g < end_of(s, task); g++) {
    size_t at = (size_t)id_of(s, g) * E;
    Behind b = behind(s, id_of(s, g));
    real *row = s->x + (size_t)s->place[s->first[g]] * E;
    if (g + AHEAD < s->ids) prefetch(s->table + (size_t)id_of(s, g + AHEAD) * E, E);
    if (b.missed) VECTORS(E, read_some(&b, s->table + at + j, s->mu + at + j, s->nu + at + j, row + j, n));
    else memcpy(row, s->table + at, sizeof(real) * E);
    for (int i = s->first[g] + 1; i < s->first[g + 1]; i++)
      memcpy(s->x + (size_t)s->place[i] * E, row, sizeof(real) * E);
  }
}

/* ---- an update, in three passes over pieces of arrays and ids --------------------------------------------------- */

INLINE void squares(const Numbers *k, vec g, vec *square, vec *limited) {
  *square += g * g;
  if (isinf(k->limit)) return;
  vec mean = bounded(g * k->share, -k->limit, k->limit);
  *limited += mean * mean;
}
INLINE void sum_some(const Call *s, const Numbers *k, int g, int j, int n, vec *square, vec *limited) {
  vec sum = {0};
  for (int i = s->first[g]; i < s->first[g + 1]; i++) sum += load(s->gradient + (size_t)s->place[i] * s->E + j, n);
  store(s->sum + (size_t)g * s->E + j, sum, n);
  squares(k, sum, square, limited);
}

/* first: one gradient for each id, the sum over its places; squared norms */
static void square_task(void *given, int task) {
  Call *s = given;
  const Numbers k = s->k;
  vec square = {0}, limited = {0};
  if (task < s->pieces) {
    Piece *a = s->piece + task;
    vec weights = {0};
    if (a->m) VECTORS(a->size, squares(&k, load(a->g + j, n), &square, &limited));
    else VECTORS(a->size, squares(&k, load(a->g + j, n), &square, &limited);
                          weights += load(a->p + j, n) * load(a->p + j, n));
    if (!isfinite(total(weights))) atomic_store(&s->large, 1);
  } else {
    int ids = task - s->pieces;
    for (int g = ids * IDS; g < end_of(s, ids); g++) {
      for (int i = s->first[g + 1]; g + 1 < s->ids && i < s->first[g + 2]; i++)
        prefetch(s->gradient + (size_t)s->place[i] * s->E, s->E);
      VECTORS(s->E, sum_some(s, &k, g, j, n, &square, &limited));
    }
  }
  s->square[2 * task] = total(square), s->square[2 * task + 1] = total(limited);
}

INLINE vec clipped(const Numbers *k, vec g) { return k->scale * bounded(g * k->share, -k->limit, k->limit); }
INLINE void moments(const Numbers *k, vec g, vec *m, vec *v) {
  g = clipped(k, g);
  *m = k->b1 * *m + (1 - k->b1) * g;
  *v = k->b2 * *v + (1 - k->b2) * g * g;
}
INLINE vec moved(const Numbers *k, vec p, vec m, vec v, real decay) {
  return p - k->rate * (m * k->m_scale / (root(v * k->v_scale) + k->eps) + decay * p);
}
INLINE void descend_some(const Numbers *k, const Piece *a, int j, int n, vec *wrong) {
  vec p = load(a->p + j, n);
  p -= k->rate * (clipped(k, load(a->g + j, n)) + a->decay * p), *wrong += 0 * p;
  store(a->moved + j, p, n);
}
INLINE void move_some(const Numbers *k, const Piece *a, int j, int n, vec *wrong) {
  vec m = load(a->m + j, n), v = load(a->v + j, n);
  moments(k, load(a->g + j, n), &m, &v);
  vec p = moved(k, load(a->p + j, n), m, v, a->decay);
  *wrong += 0 * p;
  store(a->moved + j, p, n);
}
INLINE void remember_some(const Numbers *k, const Piece *a, int j, int n) {
  vec m = load(a->m + j, n), v = load(a->v + j, n);
  moments(k, load(a->g + j, n), &m, &v);
  store(a->m + j, m, n), store(a->v + j, v, n);
}
/* the same of a row of the table, which stands at `at` there and at `to` among the gradients */
INLINE void move_row(const Call *s, const Numbers *k, const Behind *b, size_t at, size_t to, int n, vec *wrong) {
  vec m = load(s->mu + at, n), v = load(s->nu + at, n), p = current(b, load(s->table + at, n), m, v);
  m *= b->m, v *= b->v;
  moments(k, load(s->sum + to, n), &m, &v);
  p = moved(k, p, m, v, k->decay), *wrong += 0 * p;
  store(s->moved + to, p, n);
}
INLINE void remember_row(const Call *s, const Numbers *k, const Behind *b, size_t at, size_t to, int n) {
  vec m = b->m * load(s->mu + at, n), v = b->v * load(s->nu + at, n);
  moments(k, load(s->sum + to, n), &m, &v);
  store(s->mu + at, m, n), store(s->nu + at, v, n);
}

/* second: where every parameter goes, and whether that is finite */
static void move_task(void *given, int task) {
  Call *s = given;
  const Numbers k = s->k;
  vec wrong = {0}; /* NaN where a number is not finite */
  if (task < s->pieces) {
    Piece *a = s->piece + task;
    if (a->m) VECTORS(a->size, move_some(&k, a, j, n, &wrong));
    else VECTORS(a->size, descend_some(&k, a, j, n, &wrong));
  } else {
    int E = s->E, ids = task - s->pieces;
    for (int g = ids * IDS; g < end_of(s, ids); g++) {
      size_t at = (size_t)id_of(s, g) * E, to = (size_t)g * E;
      Behind b = behind(s, id_of(s, g));
      ask(s, g + AHEAD);
      VECTORS(E, move_row(s, &k, &b, at + j, to + j, n, &wrong));
    }
  }
  if (total(wrong) != 0) atomic_store(&s->wrong, 1);
}

/* third: parameters and moments, in place */
static void write_task(void *given, int task) {
  Call *s = given;
  const Numbers k = s->k;
  if (task < s->pieces) {
    Piece *a = s->piece + task;
    if (a->m) VECTORS(a->size, remember_some(&k, a, j, n));
    memcpy(a->p, a->moved, sizeof(real) * a->size);
    return;
  }
  int E = s->E, ids = task - s->pieces;
  for (int g = ids * IDS; g < end_of(s, ids); g++) {
    size_t at = (size_t)id_of(s, g) * E, to = (size_t)g * E;
    Behind b = behind(s, id_of(s, g));
    ask(s, g + AHEAD);
    VECTORS(E, remember_row(s, &k, &b, at + j, to + j, n));
    memcpy(s->table + at, s->moved + to, sizeof(real) * E);
    s->since[id_of(s, g)] = s->now + 1;
  }
}

INLINE void settle_some(const Behind *b, real *p, real *m, real *v, int n) {
  vec mean = load(m, n), square = load(v, n);
  store(p, current(b, load(p, n), mean, square), n);
  store(m, b->m * mean, n), store(v, b->v * square, n);
}
static void settle_task(void *given, int task) {
  Call *s = given;
  int E = s->E, end = (task + 1) * IDS < s->V ? (task + 1) * IDS : s->V;
  for (int id = task * IDS; id < end; id++) {
    if (s->since[id] == s->now) continue;
    size_t at = (size_t)id * E;
    Behind b = behind(s, id);
    VECTORS(E, settle_some(&b, s->table + at + j, s->mu + at + j, s->nu + at + j, n));
  }
}

/* Rows that this update passed by: see tables.py. */
static void drift(Call *s) {
  real keep = 1 - s->k.rate * s->k.decay, ratio = s->k.b1 / sqrt(s->k.b2);
  real more = s->k.rate * s->k.m_scale / sqrt(s->k.v_scale);
  for (int since = s->now; since >= 0; since--) {
    more = more > (real)1e-30 ? more * ratio : 0;
    s->drift[since] = keep * s->drift[since] + more, s->shrink[since] *= keep;
  }
}

/* ---- the calls -------------------------------------------------------------------------------------------------- */

static XLA_FFI_Error *out_of_step(const XLA_FFI_CallFrame *call) {
  return failed(call, "more updates than an epoch has", XLA_FFI_Error_Code_INVALID_ARGUMENT);
}
static XLA_FFI_Error *out_of_memory(const XLA_FFI_CallFrame *call) {
  return failed(call, "out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
}

/* The result that takes the place of an argument in memory. */
static void *in_place(const XLA_FFI_CallFrame *call, int i, size_t bytes) {
  if (result(call, i) != argument(call, i)) memcpy(result(call, i), argument(call, i), bytes);
  return result(call, i);
}
static real number(const XLA_FFI_CallFrame *call, int i) { return *(const real *)argument(call, i); }
static int count(const XLA_FFI_CallFrame *call, int i) { return *(const int32_t *)argument(call, i); }

/* table, mu, nu [V, E], since [V], drift, shrink [S + 1], updates of the epoch, of Adam, b1, b2, eps, ids [T, B], length [B] -> x [T, B, E], place [T * B], first [T * B + 1], how many ids [1] */
XLA_FFI_Error *jaxrnn_read(XLA_FFI_CallFrame *call) {
  if (ASKED_WHAT_IT_IS(call)) return described(call);
  Call s = {.table = argument(call, 0), .mu = argument(call, 1), .nu = argument(call, 2), .since = argument(call, 3),
            .drift = argument(call, 4), .shrink = argument(call, 5), .now = count(call, 6), .count = count(call, 7),
            .k.b1 = number(call, 8), .k.b2 = number(call, 9), .k.eps = number(call, 10), .id = argument(call, 11),
            .length = argument(call, 12), .V = size(call, 0, 0), .E = size(call, 0, 1), .T = size(call, 11, 0),
            .B = size(call, 11, 1)};
  if (s.now < 0 || s.now >= size(call, 4, 0)) return out_of_step(call);
  s.x = result(call, 0), s.place = result(call, 1), s.first = result(call, 2);
  char *room = room_for(sizeof(int32_t) * s.T * s.B + sizeof(Behind) * (s.now + 1));
  if (!room) return out_of_memory(call);
  sort(&s, result(call, 1), result(call, 2), (int32_t *)room);
  if (s.now < s.ids) remember(&s, (Behind *)room);
  *(int32_t *)result(call, 3) = s.ids;
  int threads = (size_t)s.ids * s.E < 1 << 14 ? 1 : jaxrnn_cores;
  jaxrnn_in_parallel(threads, tasks_of_ids(&s) + s.T, read_task, &s);
  give_back(room);
  return NULL;
}

/* table, mu, nu, since, drift, shrink, counts and numbers as above -> the first six, in place */
XLA_FFI_Error *jaxrnn_settle(XLA_FFI_CallFrame *call) {
  if (ASKED_WHAT_IT_IS(call)) return described(call);
  int V = size(call, 0, 0), E = size(call, 0, 1), steps = size(call, 4, 0);
  size_t wide = sizeof(real) * V * E;
  Call s = {.V = V, .E = E, .now = count(call, 6), .count = count(call, 7), .k.b1 = number(call, 8),
            .k.b2 = number(call, 9), .k.eps = number(call, 10), .table = in_place(call, 0, wide), .mu = in_place(call, 1, wide), .nu = in_place(call, 2, wide),
            .since = in_place(call, 3, sizeof(int32_t) * V), .drift = in_place(call, 4, sizeof(real) * steps),
            .shrink = in_place(call, 5, sizeof(real) * steps)};
  if (s.now < 0 || s.now >= steps) return out_of_step(call);
  jaxrnn_in_parallel(wide < 1 << 16 ? 1 : jaxrnn_cores, (V + IDS - 1) / IDS, settle_task, &s);
  memset(s.since, 0, sizeof(int32_t) * V), memset(s.drift, 0, sizeof(real) * steps);
  for (int i = 0; i < steps; i++) s.shrink[i] = 1;
  return NULL;
}

static size_t numbers_of(const XLA_FFI_CallFrame *call, int i) {
  size_t count = 1;
  XLA_FFI_Buffer *a = call->args.args[i];
  for (int axis = 0; axis < a->rank; axis++) count *= a->dims[axis];
  return count;
}

/* All that is changed comes first, argument n being result n: p, m, v of every array (p alone where m and v are not kept: plain
   gradient descent, without a table); of a table too: table, mu, nu, since,
   drift, shrink. Then: counts as above, is all finite so far, numbers as above, rate, decay, rows, clips by value and by
   norm; the gradient of every array; of the table dL/dx [T, B, E], ids, place, first, how many.
   -> the first, in place; the norm of the mean gradient; is all finite */
enum { SCALARS = 11 };
XLA_FFI_Error *jaxrnn_learn(XLA_FFI_CallFrame *call) {
  if (ASKED_WHAT_IT_IS(call)) return described(call);
  int changed = call->rets.size - 2, given = call->args.size - changed - SCALARS; /* 3 arrays and arrays; with a table + 6, + 5 */
  int has_table = (changed - given) % 2, arrays = has_table ? given - 5 : given, each = changed > given ? 3 : 1;
  const int scalars = changed, gradients = changed + SCALARS;
  Call s = {.now = count(call, scalars), .count = count(call, scalars + 1), .k.b1 = number(call, scalars + 3),
            .k.b2 = number(call, scalars + 4), .k.eps = number(call, scalars + 5), .k.rate = number(call, scalars + 6),
            .k.decay = number(call, scalars + 7), .k.share = 1 / number(call, scalars + 8),
            .k.limit = number(call, scalars + 9), .k.scale = 1};
  s.k.m_scale = 1 / (1 - pow(s.k.b1, s.count + 1)), s.k.v_scale = 1 / (1 - pow(s.k.b2, s.count + 1));
  size_t size_of_all = 0, pieces = 0;
  for (int n = 0; n < arrays; n++) {
    size_t here = numbers_of(call, each * n);
    for (int i = 0; i < each; i++) in_place(call, each * n + i, sizeof(real) * here);
    size_of_all += here + VW, pieces += here / PIECE + 1;
  }
  if (has_table) {
    int at = 3 * arrays, from = gradients + arrays;
    if (s.now < 0 || s.now + 1 >= size(call, at + 4, 0)) return out_of_step(call);
    s.V = size(call, at, 0), s.E = size(call, at, 1);
    size_t wide = sizeof(real) * s.V * s.E, steps = sizeof(real) * numbers_of(call, at + 4);
    s.table = in_place(call, at, wide), s.mu = in_place(call, at + 1, wide), s.nu = in_place(call, at + 2, wide);
    s.since = in_place(call, at + 3, sizeof(int32_t) * s.V);
    s.drift = in_place(call, at + 4, steps), s.shrink = in_place(call, at + 5, steps);
    s.gradient = argument(call, from), s.id = argument(call, from + 1), s.place = argument(call, from + 2);
    s.first = argument(call, from + 3), s.ids = *(int32_t *)argument(call, from + 4);
  }
  size_t of_ids = (size_t)s.ids * s.E, tasks = pieces + tasks_of_ids(&s);
  char *at = room_for(sizeof(Piece) * pieces + sizeof(real) * (size_of_all + 2 * of_ids + 2 * tasks) +
                      sizeof(Behind) * (s.now + 1) + 64 * 8);
  if (!at) return out_of_memory(call);
  Room room = {at};
  s.piece = take(&room, sizeof(Piece) * pieces), s.square = take(&room, sizeof(real) * 2 * tasks);
  s.sum = take(&room, sizeof(real) * of_ids), s.moved = take(&room, sizeof(real) * of_ids);
  real *to = take(&room, sizeof(real) * size_of_all);
  if (s.now < s.ids) remember(&s, take(&room, sizeof(Behind) * (s.now + 1)));
  for (int n = 0; n < arrays; n++)
    for (size_t from = 0, all = numbers_of(call, each * n); from < all; from += PIECE) {
      Piece *a = s.piece + s.pieces++;
      a->p = (real *)result(call, each * n) + from, a->g = (real *)argument(call, gradients + n) + from;
      a->m = each > 1 ? (real *)result(call, each * n + 1) + from : NULL;
      a->v = each > 1 ? (real *)result(call, each * n + 2) + from : NULL;
      a->moved = to, a->size = all - from < PIECE ? all - from : PIECE, to += a->size;
      a->decay = ((XLA_FFI_Buffer *)call->args.args[each * n])->rank > 1 ? s.k.decay : 0; /* biases do not decay */
    }
  tasks = s.pieces + tasks_of_ids(&s);
  int threads = size_of_all + of_ids < 1 << 15 ? 1 : jaxrnn_cores;

  jaxrnn_in_parallel(threads, tasks, square_task, &s);
  double square = 0, limited = 0;
  for (size_t task = 0; task < tasks; task++) square += s.square[2 * task], limited += s.square[2 * task + 1];
  real norm = sqrt(square) * s.k.share, after = isinf(s.k.limit) ? norm : (real)sqrt(limited);
  s.k.scale = fmin(1, number(call, scalars + 10) / fmax(after, TINY));
  int finite = *(const uint8_t *)argument(call, scalars + 2) && isfinite(norm);
  int sure = each == 1 && !atomic_load(&s.large) && fabs(s.k.rate) < 1e10 && s.k.rate * s.k.decay <= 1 && norm < 1e19;
  for (int n = 0; sure && n < s.pieces; n++) s.piece[n].moved = s.piece[n].p; /* cannot leave the finite numbers */
  if (finite) {
    jaxrnn_in_parallel(threads, tasks, move_task, &s);
    finite = !atomic_load(&s.wrong);
  }
  if (finite && !sure) {
    jaxrnn_in_parallel(threads, tasks, write_task, &s);
    if (has_table) drift(&s);
  }
  *(real *)result(call, changed) = norm;
  *(uint8_t *)result(call, changed + 1) = finite;
  give_back(at);
  return NULL;
}
