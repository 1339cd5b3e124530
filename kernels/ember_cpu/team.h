/* The threads of one call: they meet at barriers of their own, which spin, and then yield; work is handed out piece by piece. */
#pragma once

#include <sched.h>
#include <stdatomic.h>

#include "numbers.h"

#define SPINS 4000

typedef struct {
    _Atomic int waiting, round;
    _Atomic i64 next; /* of the work that is handed out now */
    int threads;
} Team;

static void meet(Team *team) {
    int round = atomic_load_explicit(&team->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->waiting, 1, memory_order_acq_rel) == team->threads - 1) {
        atomic_store_explicit(&team->waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&team->next, 0, memory_order_relaxed);
        atomic_store_explicit(&team->round, round + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->round, memory_order_acquire) == round; spins++) {
        if (spins < SPINS) _mm_pause();
        else sched_yield();
    }
}

/* The start of the next `count` of `total`; total or more: there is none left. Between two meetings. */
static inline i64 take(Team *team, i64 count) {
    return atomic_fetch_add_explicit(&team->next, count, memory_order_relaxed);
}
