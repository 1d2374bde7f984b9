// Threads that share the work of a call, phase by phase.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

INLINE void pause() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr int SPINS = 4000;  // tens of microseconds: longer than a phase of a step, shorter than a time slice

class ThreadPool {
  public:
    explicit ThreadPool(int size) : size(size) {
        for (int i = 1; i < size; ++i) threads.emplace_back([this, i] { serve(i); });
    }
    ~ThreadPool() {
        {
            std::lock_guard<std::mutex> lock(mutex);
            stopping = true;
            round.fetch_add(1);
        }
        wake.notify_all();
        for (auto &thread : threads) thread.join();
    }

    // Every thread runs `work(thread)`; returns when all are done. One at a time.
    template <class Work> void run(int64_t num_phases, Work &&work) {
        std::lock_guard<std::mutex> one(busy);
        if (int64_t(next.size()) < num_phases) next = std::vector<std::atomic<int64_t>>(num_phases);
        for (auto &counter : next) counter.store(0, std::memory_order_relaxed);
        job = [](void *context, int thread) { (*static_cast<std::remove_reference_t<Work> *>(context))(thread); };
        argument = const_cast<void *>(static_cast<const void *>(&work));
        if (size > 1) {
            std::lock_guard<std::mutex> lock(mutex);
            round.fetch_add(1);
        }
        wake.notify_all();
        job(argument, 0);
        barrier();
    }

    void barrier() {
        if (size == 1) return;
        const uint32_t now = turn.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived.store(0, std::memory_order_relaxed);
            turn.store(now + 1, std::memory_order_release);
        } else {
            for (int spins = 0; turn.load(std::memory_order_acquire) == now; ++spins)
                spins < SPINS ? pause() : std::this_thread::yield();
        }
    }

    // The first of `count` pieces of this phase's work that no thread has taken: a slower core takes fewer.
    int64_t take(int64_t phase, int64_t count) { return next[phase].fetch_add(count, std::memory_order_relaxed); }

    const int size;
    std::vector<std::vector<float>> scratch{std::vector<std::vector<float>>(size)};  // of each thread
    std::vector<float> shared;

  private:
    void serve(int thread) {
        for (uint32_t seen = 0;;) {
            for (int spins = 0; round.load(std::memory_order_acquire) == seen && spins < SPINS; ++spins) pause();
            if (round.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex);
                wake.wait(lock, [&] { return round.load() != seen; });
            }
            seen = round.load(std::memory_order_acquire);
            if (stopping) return;
            job(argument, thread);
            barrier();
        }
    }

    std::vector<std::thread> threads;
    std::mutex mutex, busy;
    std::condition_variable wake;
    std::atomic<int> arrived{0};
    std::atomic<uint32_t> round{0}, turn{0};  // which may wrap
    std::vector<std::atomic<int64_t>> next;
    bool stopping = false;
    void (*job)(void *, int) = nullptr;
    void *argument = nullptr;
};

// One of the threads in a call, with its place in the sequence of phases.
struct Worker {
    ThreadPool &team;
    int index;
    int64_t phase = 0;

    int64_t take(int64_t count) { return team.take(phase, count); }
    void finish() {
        team.barrier();
        ++phase;
    }
};

}  // namespace
