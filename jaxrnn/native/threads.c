/* Helpers of a call, one for each other core. XLA's pool has threads too, but they fall asleep at once: where a call takes
   50 us, waking one takes as long. These look for more to do for a while first, so the calls of one update find them awake. */

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#define MOST 63
#define AWAKE 100000 /* nanoseconds; between the calls of an update there are some 50,000 */

#if defined(__x86_64__) || defined(__i386__)
#define RELAX __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX __asm__ volatile("yield")
#else
#define RELAX (void)0
#endif

int jaxrnn_cores = 1;
atomic_int jaxrnn_threads = 1 << 20;

#ifdef __SSE__ /* whether numbers too small to be normal are zeros: XLA's threads say so, and the bits depend on it */
#define MODE __builtin_ia32_stmxcsr()
#define SET_MODE(mode) __builtin_ia32_ldmxcsr(mode)
#else
#define MODE 0
#define SET_MODE(mode) (void)(mode)
#endif

typedef struct {
  atomic_int next, done, users;
  int count;
  unsigned mode; /* of the caller */
  void (*task)(void *, int);
  void *given;
} Shared;

typedef struct {
  _Alignas(64) _Atomic(Shared *) work;
  atomic_int asleep, busy;
  pthread_mutex_t door;
  pthread_cond_t bell;
} Helper;

static Helper helpers[MOST];
static int started;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void let_go(Shared *s) {
  if (atomic_fetch_sub(&s->users, 1) == 1) free(s);
}

/* Tasks are claimed, never assigned: a helper that comes late finds nothing left, and nobody waits for it. */
static void help(Shared *s) {
  for (int i; (i = atomic_fetch_add(&s->next, 1)) < s->count;) {
    s->task(s->given, i);
    atomic_fetch_add(&s->done, 1);
  }
  let_go(s);
}

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * (int64_t)1000000000 + t.tv_nsec;
}

static Shared *found(Helper *me) { return atomic_load(&me->work) ? atomic_exchange(&me->work, NULL) : NULL; }

static void *helper(void *pointer) {
  Helper *me = pointer;
  for (;;) {
    Shared *s = NULL;
    for (int64_t until = now() + AWAKE; !s && now() < until; sched_yield()) /* who else wants the core may have it */
      for (int turn = 0; turn < 16 && !(s = found(me)); turn++) RELAX;
    if (!s) {
      pthread_mutex_lock(&me->door);
      atomic_store(&me->asleep, 1); /* before it looks again: who gives work looks at this afterwards */
      while (!(s = found(me))) pthread_cond_wait(&me->bell, &me->door);
      atomic_store(&me->asleep, 0);
      pthread_mutex_unlock(&me->door);
    }
    atomic_store(&me->busy, 1);
    SET_MODE(s->mode);
    help(s);
    atomic_store(&me->busy, 0);
  }
  return NULL;
}

static void start(void) {
  sigset_t every, before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before); /* signals are Python's */
  for (int most = jaxrnn_cores - 1 < MOST ? jaxrnn_cores - 1 : MOST; started < most; started++) {
    Helper *one = helpers + started;
    pthread_t thread;
    pthread_mutex_init(&one->door, NULL);
    pthread_cond_init(&one->bell, NULL);
    if (pthread_create(&thread, NULL, helper, one)) break; /* then there are fewer, and the caller does more */
    pthread_detach(thread);
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Will that helper look at the work? Not where that of another call lies before it. */
static int given(Helper *one, Shared *s) {
  Shared *none = NULL;
  atomic_fetch_add(&s->users, 1);
  if (!atomic_compare_exchange_strong(&one->work, &none, s)) {
    atomic_fetch_sub(&s->users, 1);
    return 0;
  }
  if (atomic_load(&one->asleep)) {
    pthread_mutex_lock(&one->door);
    pthread_cond_signal(&one->bell);
    pthread_mutex_unlock(&one->door);
  }
  return 1;
}

/* task(given, 0 .. count - 1) by at most so many threads, this one among them */
void jaxrnn_in_parallel(int threads, int count, void (*task)(void *, int), void *argument) {
  int most = atomic_load(&jaxrnn_threads);
  threads = threads < most ? threads : most;
  threads = threads < count ? threads : count;
  Shared *s = threads > 1 ? malloc(sizeof *s) : NULL;
  if (!s) {
    for (int i = 0; i < count; i++) task(argument, i);
    return;
  }
  pthread_once(&once, start);
  *s = (Shared){.count = count, .task = task, .given = argument, .mode = MODE};
  atomic_store(&s->users, 2);
  uint64_t asked = 0;
  for (int busy = 0, wanted = threads - 1; busy < 2; busy++) /* those that have nothing to do come first */
    for (int i = 0; i < started && wanted; i++) {
      if (asked >> i & 1 || atomic_load(&helpers[i].busy) != busy || !given(helpers + i, s)) continue;
      asked |= (uint64_t)1 << i, wanted--;
    }
  help(s);
  for (int turn = 0; atomic_load(&s->done) < count; turn++)
    if (turn < 2000) RELAX;
    else sched_yield();
  for (int i = 0; asked >> i; i++) { /* who has not come by now need not */
    Shared *mine = s;
    if (asked >> i & 1 && atomic_compare_exchange_strong(&helpers[i].work, &mine, NULL)) atomic_fetch_sub(&s->users, 1);
  }
  let_go(s);
}
