// Threads that share the work of one step. One thread is the usual case: then nothing is ever waited for.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include <immintrin.h>

namespace tandem {

// A job is a door: helpers that are awake come in while it stands open, and who calls waits for those inside
// alone. A helper that sleeps, or whose core another process has, is never waited for: work goes on without it.
class Team {
  public:
    explicit Team(int threads) {
        try {
            for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { serve(i); });
        } catch (...) {
            end();
            throw;
        }
    }

    ~Team() { end(); }

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
        const Opened opened(*this);
        job_(0);
    }

  private:
    // The door, in one word: how many are inside, whether it is open, and which job this is.
    static constexpr uint32_t OPEN = 1 << 10, ROUND = OPEN << 1;

    static uint32_t inside(uint32_t door) { return door % OPEN; }

    // The door stands open as long as this lives, which ends when nobody is inside, also if the work throws.
    struct Opened {
        Team& team;
        explicit Opened(Team& t) : team(t) {
            team.door_.fetch_add(ROUND + OPEN, std::memory_order_release);
            team.door_.notify_all();
        }
        ~Opened() {
            team.door_.fetch_sub(OPEN, std::memory_order_relaxed);
            team.await([](uint32_t door) { return inside(door) == 0; });
        }
    };

    // Spins for some microseconds, the length of a short product, and then sleeps.
    template <class Ready>
    uint32_t await(Ready ready) {
        uint32_t door = door_.load(std::memory_order_acquire);
        for (int spin = 0; spin < 4096 && !ready(door); ++spin) {
            _mm_pause();
            door = door_.load(std::memory_order_acquire);
        }
        while (!ready(door)) {
            door_.wait(door, std::memory_order_acquire);
            door = door_.load(std::memory_order_acquire);
        }
        return door;
    }

    void end() {
        ending_ = true;
        door_.fetch_add(ROUND, std::memory_order_release);
        door_.notify_all();
        for (auto& helper : helpers_) helper.join();
    }

    void serve(int worker) {
        for (uint32_t last = 0;;) {
            uint32_t door = await([&](uint32_t now) { return ending_ || (now & OPEN && now / ROUND != last); });
            if (ending_) return;
            if (!door_.compare_exchange_strong(door, door + 1, std::memory_order_acquire)) continue;
            last = door / ROUND;
            job_(worker);
            if (inside(door_.fetch_sub(1, std::memory_order_release)) == 1) door_.notify_all();
        }
    }

    std::function<void(int)> job_;
    std::atomic<uint32_t> door_{0};
    std::atomic<bool> ending_{false};
    std::vector<std::thread> helpers_;
};

}  // namespace tandem
