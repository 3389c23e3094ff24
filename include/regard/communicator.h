#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

namespace regard {

/// A group of ranks that make the same calls in the same order. All methods but the plain questions are collective:
/// every rank of the group has to call them, with sizes that fit together.
///
/// Thread safety: a rank uses its communicator, and those that came from it by `split`, from one thread at a time.
class Communicator {
 public:
  /// A transfer under way. Its buffers must stay until `wait` returns; destroying it waits.
  class Transfer {
   public:
    virtual ~Transfer() = default;
    virtual void wait() = 0;
  };

  virtual ~Communicator() = default;
  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;

  /// Starts sending send[i] to rank i and receiving what it sends into receive[i]; both have size() entries, of which
  /// any may be empty. What a rank has for itself is copied.
  [[nodiscard]] virtual std::unique_ptr<Transfer> start_exchange(std::span<const std::span<const std::byte>> send,
                                                                 std::span<const std::span<std::byte>> receive) = 0;

  /// Ranks of the same color form a group, ordered by key, and by rank where keys are equal.
  [[nodiscard]] virtual std::shared_ptr<Communicator> split(int color, int key) = 0;

  /// Bytes that this rank has sent to others: through this communicator and those that came from it by `split`.
  [[nodiscard]] virtual int64_t bytes_sent() const = 0;

  void exchange(std::span<const std::span<const std::byte>> send, std::span<const std::span<std::byte>> receive) {
    start_exchange(send, receive)->wait();
  }
  /// parts[i] = what rank i has as `own`; sizes may differ between ranks.
  void all_gather(std::span<const std::byte> own, std::span<const std::span<std::byte>> parts) {
    exchange(std::vector<std::span<const std::byte>>(static_cast<size_t>(size()), own), parts);
  }
  /// What each rank has as `own`.
  template <class Value>
  requires std::is_trivially_copyable_v<Value>
  [[nodiscard]] std::vector<Value> gather(const Value& own) {
    std::vector<Value> values(static_cast<size_t>(size()));
    std::vector<std::span<std::byte>> parts(values.size());
    for (size_t i = 0; i < values.size(); ++i) parts[i] = std::as_writable_bytes(std::span(&values[i], 1));
    all_gather(std::as_bytes(std::span(&own, 1)), parts);
    return values;
  }

  /// A group of one.
  [[nodiscard]] static std::shared_ptr<Communicator> single();
};

}  // namespace regard
