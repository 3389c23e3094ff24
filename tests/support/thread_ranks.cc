#include "support/thread_ranks.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <set>
#include <thread>
#include <tuple>

#include "parallel/own_part.h"
#include "tensor/fail.h"

namespace regard::test {
namespace {

// What the ranks of one run share. All members, and those of Group and Pending, are guarded by the mutex.
struct Hub {
  explicit Hub(int count) : ended(static_cast<size_t>(count)) {}

  // Only the first counts; others fail because it did. What a rank ends with says more than what it left behind.
  void fail(int rank, std::exception_ptr reason) {
    if (failed < 0) failed = rank;
    if (failed == rank) error = std::move(reason);
    changed.notify_all();
  }

  std::mutex mutex;
  std::condition_variable changed;
  int failed = -1;  // the first rank that threw
  std::exception_ptr error;
  std::vector<bool> ended;  // by rank
};

// One rank's side of an exchange.
struct Pending {
  std::multiset<int> peers;  // of the run; those whose side of a part is not there yet
  std::string error;
};

// One side of a part on its way: the bytes of its sender, or the place where its receiver wants them.
struct Half {
  std::shared_ptr<Pending> pending;
  std::span<const std::byte> from;
  std::span<std::byte> to;
};

struct Group {
  using Part = std::tuple<int64_t, int, int>;  // number of the exchange, sender, receiver
  std::vector<int> members;                    // ranks of the run
  std::map<Part, Half> halves;
  std::map<std::pair<int64_t, int>, std::shared_ptr<Group>> splits;  // by number of the exchange, and color
};

class ThreadRank final : public Communicator {
 public:
  ThreadRank(std::shared_ptr<Hub> hub, std::shared_ptr<Group> group, int rank, std::shared_ptr<int64_t> bytes_sent)
      : hub_(std::move(hub)), group_(std::move(group)), rank_(rank), bytes_sent_(std::move(bytes_sent)) {}

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return static_cast<int>(group_->members.size()); }
  [[nodiscard]] int64_t bytes_sent() const override { return *bytes_sent_; }
  [[nodiscard]] std::unique_ptr<Transfer> start_exchange(std::span<const std::span<const std::byte>> send,
                                                         std::span<const std::span<std::byte>> receive) override;
  [[nodiscard]] std::shared_ptr<Communicator> split(int color, int key) override;

 private:
  class ThreadTransfer;

  // Puts down one side of a part. Whoever comes second copies, as a machine's network would meanwhile.
  void put(const Group::Part& part, Half half);
  [[nodiscard]] int in_run(int rank) const { return group_->members[static_cast<size_t>(rank)]; }

  std::shared_ptr<Hub> hub_;
  std::shared_ptr<Group> group_;
  int rank_;
  int64_t exchanges_ = 0;
  std::shared_ptr<int64_t> bytes_sent_;
};

class ThreadRank::ThreadTransfer final : public Transfer {
 public:
  ThreadTransfer(std::shared_ptr<Hub> hub, std::shared_ptr<Group> group, int rank, std::shared_ptr<Pending> pending)
      : hub_(std::move(hub)), group_(std::move(group)), rank_(rank), pending_(std::move(pending)) {}

  // A rank on its way out would wait for others that may wait for it.
  ~ThreadTransfer() override {
    std::unique_lock lock(hub_->mutex);
    const bool unwinding = std::uncaught_exceptions() > exceptions_;
    if (unwinding && !over()) hub_->fail(rank_, std::make_exception_ptr(Error("a transfer was left under way")));
    wait(lock);
    std::erase_if(group_->halves, [&](const auto& part) { return part.second.pending == pending_; });
  }

  void wait() override {
    std::unique_lock lock(hub_->mutex);
    wait(lock);
    require(pending_->error.empty(), "{}", pending_->error);
    if (pending_->peers.empty()) return;
    require(hub_->failed < 0, "exchange: rank {} has failed", hub_->failed);
    fail("exchange: rank {} has ended, expected its part of an exchange",
         *std::ranges::find_if(pending_->peers, ended()));
  }

 private:
  [[nodiscard]] std::function<bool(int)> ended() const {
    return [this](int peer) { return hub_->ended[static_cast<size_t>(peer)]; };
  }

  // Whether there is nothing more to come, for whatever reason.
  [[nodiscard]] bool over() const {
    return pending_->peers.empty() || !pending_->error.empty() || hub_->failed >= 0 ||
           std::ranges::any_of(pending_->peers, ended());
  }

  void wait(std::unique_lock<std::mutex>& lock) const {
    hub_->changed.wait(lock, [&] { return over(); });
  }

  std::shared_ptr<Hub> hub_;
  std::shared_ptr<Group> group_;
  int rank_;  // of the run
  std::shared_ptr<Pending> pending_;
  int exceptions_ = std::uncaught_exceptions();
};

void ThreadRank::put(const Group::Part& part, Half half) {
  const auto [place, first] = group_->halves.try_emplace(part, half);
  if (first) return;
  const Half other = place->second;
  group_->halves.erase(place);
  const auto [number, sender, receiver] = part;
  const std::span<const std::byte> from = sender == rank_ ? half.from : other.from;
  const std::span<std::byte> to = sender == rank_ ? other.to : half.to;
  if (from.size() == to.size())
    std::ranges::copy(from, to.begin());
  else
    half.pending->error = other.pending->error =
        fmt::format("exchange: rank {} sends {} bytes to rank {}, expected the {} that it receives", sender,
                    from.size(), receiver, to.size());
  half.pending->peers.extract(in_run(sender == rank_ ? receiver : sender));
  other.pending->peers.extract(in_run(rank_));
  hub_->changed.notify_all();
}

std::unique_ptr<Communicator::Transfer> ThreadRank::start_exchange(std::span<const std::span<const std::byte>> send,
                                                                   std::span<const std::span<std::byte>> receive) {
  copy_own_part(*this, send, receive);
  const auto pending = std::make_shared<Pending>();
  const std::lock_guard lock(hub_->mutex);
  ++exchanges_;
  for (int peer = 0; peer < size(); ++peer)
    if (peer != rank_) pending->peers.insert({in_run(peer), in_run(peer)});
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank_) continue;
    const auto part = static_cast<size_t>(peer);
    *bytes_sent_ += static_cast<int64_t>(send[part].size());
    put({exchanges_, rank_, peer}, {.pending = pending, .from = send[part], .to = {}});
    put({exchanges_, peer, rank_}, {.pending = pending, .from = {}, .to = receive[part]});
  }
  return std::make_unique<ThreadTransfer>(hub_, group_, in_run(rank_), pending);
}

std::shared_ptr<Communicator> ThreadRank::split(int color, int key) {
  require(color >= 0, "split: color is {}, expected 0 or more", color);
  struct Wish {
    int color, key, rank;
    auto operator<=>(const Wish&) const = default;
  };
  const Wish own{.color = color, .key = key, .rank = rank_};
  const int64_t sent_before = *bytes_sent_;
  std::vector<Wish> wishes = gather(own);
  *bytes_sent_ = sent_before;
  std::erase_if(wishes, [&](const Wish& wish) { return wish.color != color; });
  std::ranges::sort(wishes);
  const std::lock_guard lock(hub_->mutex);
  auto& group = group_->splits[{exchanges_, color}];
  if (group == nullptr) {
    group = std::make_shared<Group>();
    for (const Wish& wish : wishes) group->members.push_back(in_run(wish.rank));
  }
  return std::make_shared<ThreadRank>(hub_, group, static_cast<int>(std::ranges::find(wishes, own) - wishes.begin()),
                                      bytes_sent_);
}

}  // namespace

void run_ranks(int count, const std::function<void(std::shared_ptr<Communicator>)>& work) {
  const auto hub = std::make_shared<Hub>(count);
  const auto group = std::make_shared<Group>();
  group->members.resize(static_cast<size_t>(count));
  std::iota(group->members.begin(), group->members.end(), 0);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < count; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        work(std::make_shared<ThreadRank>(hub, group, rank, std::make_shared<int64_t>(0)));
      } catch (...) {
        const std::lock_guard lock(hub->mutex);
        hub->fail(rank, std::current_exception());
      }
      const std::lock_guard lock(hub->mutex);
      hub->ended[static_cast<size_t>(rank)] = true;
      hub->changed.notify_all();
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (hub->failed >= 0) std::rethrow_exception(hub->error);
}

}  // namespace regard::test
