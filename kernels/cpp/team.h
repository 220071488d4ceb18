// Threads that share the work of one step. One thread is the usual case: then nothing is ever waited for.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include <immintrin.h>

namespace tandem {

class Team {
  public:
    explicit Team(int threads) {
        for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { serve(i); });
    }

    ~Team() {
        ending_ = true;
        round_.fetch_add(1, std::memory_order_release);
        round_.notify_all();
        for (auto& helper : helpers_) helper.join();
    }

    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return int(helpers_.size()) + 1; }

    // work(worker, begin, end) for pieces of [0, count), `piece` at a time, by whoever is free.
    template <class Work>
    void share(int64_t count, int64_t piece, const Work& work) {
        if (helpers_.empty() || count <= piece) {
            if (count > 0) work(0, int64_t(0), count);
            return;
        }
        std::atomic<int64_t> next{0};
        job_ = [&](int worker) {
            for (int64_t begin; (begin = next.fetch_add(piece, std::memory_order_relaxed)) < count;)
                work(worker, begin, begin + piece < count ? begin + piece : count);
        };
        busy_.store(int(helpers_.size()), std::memory_order_relaxed);
        round_.fetch_add(1, std::memory_order_release);
        round_.notify_all();
        job_(0);
        await(busy_, [](int busy) { return busy == 0; });
    }

  private:
    // Spins for some microseconds, the length of a short product, and then sleeps.
    template <class Value, class Ready>
    static Value await(std::atomic<Value>& value, Ready ready) {
        Value seen = value.load(std::memory_order_acquire);
        for (int spin = 0; spin < 4096 && !ready(seen); ++spin) {
            _mm_pause();
            seen = value.load(std::memory_order_acquire);
        }
        while (!ready(seen)) {
            value.wait(seen, std::memory_order_acquire);
            seen = value.load(std::memory_order_acquire);
        }
        return seen;
    }

    void serve(int worker) {
        for (uint32_t done = 0;;) {
            done = await(round_, [done](uint32_t round) { return round != done; });
            if (ending_) return;
            job_(worker);
            if (busy_.fetch_sub(1, std::memory_order_release) == 1) busy_.notify_all();
        }
    }

    std::function<void(int)> job_;
    std::atomic<uint32_t> round_{0};
    std::atomic<int> busy_{0};
    std::atomic<bool> ending_{false};
    std::vector<std::thread> helpers_;
};

}  // namespace tandem
