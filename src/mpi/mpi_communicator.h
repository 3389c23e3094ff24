#pragma once

#include <mpi.h>

#include <cstddef>
#include <memory>

#include "mpi/transfer.h"
#include "regard/communicator.h"

namespace regard::mpi {

// Progress is counted in messages, so that one has to arrive within the timeout: 16 MB take 30 s where 8 ranks share a
// link of 5 MB/s. MPI's counts stop at 2^31.
inline constexpr size_t kLargestMessage = size_t{1} << 24;

class MpiCommunicator final : public Communicator {
 public:
  // Takes over the handle. Parts of more than `largest_message` bytes travel in pieces.
  MpiCommunicator(MPI_Comm handle, std::shared_ptr<Family> family, size_t largest_message = kLargestMessage);
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;
  ~MpiCommunicator() override;

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return size_; }
  [[nodiscard]] std::unique_ptr<Transfer> start_exchange(std::span<const std::span<const std::byte>> send,
                                                         std::span<const std::span<std::byte>> receive) override;
  [[nodiscard]] std::shared_ptr<Communicator> split(int color, int key) override;
  [[nodiscard]] int64_t bytes_sent() const override { return family_->bytes_sent; }

 private:
  MPI_Comm handle_;
  int rank_ = 0;
  int size_ = 0;
  size_t largest_message_;
  int exchanges_ = 0;
  std::shared_ptr<Family> family_;
};

}  // namespace regard::mpi
