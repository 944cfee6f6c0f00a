/* What the C functions of this folder share: numbers and vectors, threads, room for a call, and the words in which
   XLA's foreign function interface is spoken to. */

#ifndef JAXRNN_FOREIGN_H
#define JAXRNN_FOREIGN_H

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

#ifdef DOUBLE /* for tests, which ask for nine digits */
typedef double real;
typedef int64_t whole;
#else
typedef float real;
typedef int32_t whole;
#endif
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define VW ((int)(BYTES / sizeof(real))) /* numbers of a vector */
#define INLINE static inline __attribute__((always_inline))

typedef real vec __attribute__((vector_size(sizeof(real) * VW), aligned(sizeof(real)), may_alias));
typedef whole ivec __attribute__((vector_size(sizeof(real) * VW), aligned(sizeof(real)), may_alias));

INLINE vec where(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
INLINE vec all(real x) { return (vec){0} + x; }
INLINE vec bounded(vec x, real low, real high) { /* NaN stays NaN */
#if BYTES == 32 && !defined(DOUBLE) /* of two numbers the second where one is NaN */
  return __builtin_ia32_minps256(all(high), __builtin_ia32_maxps256(all(low), x));
#else
  x = where(x < all(low), all(low), x);
  return where(x > all(high), all(high), x);
#endif
}

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
/* `call` for the numbers [j, j + n) of so many: a vector, or what is left */
#define VECTORS(size, call) \
  do { \
    const int all_of_them = size; \
    int j = 0; \
    for (; j + VW <= all_of_them; j += VW) { \
      const int n = VW; \
      call; \
    } \
    if (j < all_of_them) { \
      const int n = all_of_them - j; \
      call; \
    } \
  } while (0)
INLINE real total(vec x) {
  real sum = 0;
  for (int i = 0; i < VW; i++) sum += x[i];
  return sum;
}

/* n numbers that will be asked for soon, where the processor does not foresee it: rows that lie apart */
INLINE void prefetch(const real *row, int n) {
  for (int j = 0; j < n; j += 64 / (int)sizeof(real)) __builtin_prefetch(row + j);
}

/* ---- work shared by threads (threads.c) ------------------------------------------------------------------------ */

extern int jaxrnn_cores; /* the threads that a call is divided for, which decides its bits: the caller's and helpers */
extern atomic_int jaxrnn_threads; /* that it may work with now: the cores may have other jobs */

/* task(given, 0 .. count - 1) by at most so many threads, this one among them */
void jaxrnn_in_parallel(int threads, int count, void (*task)(void *, int), void *given);

/* ---- one call -------------------------------------------------------------------------------------------------- */

typedef struct {
  char *at;
} Room;

static void *take(Room *room, size_t bytes) {
  void *found = room->at;
  room->at += (bytes + 63) / 64 * 64;
  return found;
}

enum { SPARES = 4 }; /* rooms of ended calls: asking the system for new pages would cost more than a step */
static _Atomic(void *) spare[SPARES];
typedef struct {
  size_t bytes;
} Header;

static char *room_for(size_t bytes) {
  for (int i = 0; i < SPARES; i++) {
    Header *found = atomic_exchange(spare + i, NULL);
    if (found && found->bytes >= bytes) return (char *)found + 64;
    free(found);
  }
  Header *held = aligned_alloc(64, (bytes + 127) / 64 * 64);
  if (!held) return NULL;
  held->bytes = bytes;
  return (char *)held + 64;
}
static void give_back(char *room) {
  for (int i = 0; i < SPARES; i++) {
    void *none = NULL;
    if (atomic_compare_exchange_strong(spare + i, &none, room - 64)) return;
  }
  free(room - 64);
}

static XLA_FFI_Error *failed(const XLA_FFI_CallFrame *call, const char *why, XLA_FFI_Error_Code code) {
  XLA_FFI_Error_Create_Args made = {.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE, .message = why, .errc = code};
  return call->api->XLA_FFI_Error_Create(&made);
}

static void *argument(const XLA_FFI_CallFrame *call, int i) { return ((XLA_FFI_Buffer *)call->args.args[i])->data; }
static void *result(const XLA_FFI_CallFrame *call, int i) { return ((XLA_FFI_Buffer *)call->rets.rets[i])->data; }
static int64_t size(const XLA_FFI_CallFrame *call, int i, int axis) {
  return ((XLA_FFI_Buffer *)call->args.args[i])->dims[axis];
}

static XLA_FFI_Error *described(XLA_FFI_CallFrame *call) {
  for (__typeof__(call->extension_start) e = call->extension_start; e; e = e->next) /* its name differs by version */
    if (e->type == XLA_FFI_Extension_Metadata) {
      XLA_FFI_Metadata *about = ((XLA_FFI_Metadata_Extension *)e)->metadata;
      about->api_version.major_version = XLA_FFI_API_MAJOR;
      about->api_version.minor_version = XLA_FFI_API_MINOR;
    }
  return NULL;
}
#define ASKED_WHAT_IT_IS(call) \
  ((call)->extension_start && (call)->extension_start->type == XLA_FFI_Extension_Metadata)

#endif
