/* The threads of one call: a barrier that spins and then yields, and a counter from which threads fetch work. */
#pragma once

#include <sched.h>
#include <stdatomic.h>

#include "numbers.h"

#define SPINS 4000

typedef struct {
    _Atomic int waiting, round;
    _Atomic i64 next; /* first unit of work that no thread has fetched */
    int threads;
} Team;

/* Wait until a thread of the team has called `release`. The last thread that arrives does not wait: it returns 1 at once, may do
 * work of which there is too little for several threads, and has to call `release`. */
static int arrive(Team *team) {
    int round = atomic_load_explicit(&team->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->waiting, 1, memory_order_acq_rel) == team->threads - 1) return 1;
    for (int spins = 0; atomic_load_explicit(&team->round, memory_order_acquire) == round; spins++) {
        if (spins < SPINS) _mm_pause();
        else sched_yield();
    }
    return 0;
}

/* Let the waiting threads go on. It resets the work counter. */
static void release(Team *team) {
    atomic_store_explicit(&team->waiting, 0, memory_order_relaxed);
    atomic_store_explicit(&team->next, 0, memory_order_relaxed);
    atomic_fetch_add_explicit(&team->round, 1, memory_order_release);
}

/* Wait for all threads of the team. */
static void barrier(Team *team) {
    if (arrive(team)) release(team);
}

/* Fetch the next `count` units of work: the index of the first one. An index at or beyond the total means that no work is left.
 * The counter starts at 0 after each barrier. */
static inline i64 fetch_work(Team *team, i64 count) {
    return atomic_fetch_add_explicit(&team->next, count, memory_order_relaxed);
}
