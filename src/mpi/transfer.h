#pragma once

#include <mpi.h>

#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mpi/roll_call.h"
#include "regard/communicator.h"

namespace regard::mpi {

class MpiTransfer;

// What a group and those split from it share.
struct Family {
  std::shared_ptr<RollCall> roll_call;
  std::chrono::milliseconds timeout;  // without any progress; 0: waits for ever
  int64_t bytes_sent = 0;
  std::vector<MpiTransfer*> under_way = {};

  // Moves all transfers, since ranks may wait in different orders. Returns whether a message has begun or ended.
  bool advance();
  // Advances until `done`. Spins at first and then sleeps, so that a rank without work leaves its core to others.
  // Throws Error with the silent ranks after `timeout` without progress.
  void wait_until(const std::function<bool()>& done);
};

// Parts under way in one group, in messages that all have one tag; a part of more than `largest_message` bytes travels
// in pieces.
class MpiTransfer final : public Communicator::Transfer {
 public:
  MpiTransfer(std::shared_ptr<Family> family, MPI_Comm group, int tag, size_t largest_message);
  MpiTransfer(const MpiTransfer&) = delete;
  MpiTransfer& operator=(const MpiTransfer&) = delete;
  ~MpiTransfer() override;

  // Parts of no bytes are left out.
  void receive(std::span<std::byte> part, int from);
  void send(std::span<const std::byte> part, int to);

  // Does what can be done now. Returns whether a message has begun or ended.
  bool advance();
  [[nodiscard]] bool over() const { return incoming_.empty() && receives_.empty() && sends_.empty(); }
  // Whether bytes may be on their way at this moment: only calls of MPI move them.
  [[nodiscard]] bool moves() const { return !receives_.empty() || (incoming_.empty() && !sends_.empty()); }
  void wait() override;

 private:
  // What is still to come from one rank.
  struct Incoming {
    int from;
    size_t part_size;
    std::span<std::byte> rest;
  };

  // Starts to receive the next message; false when it is not there.
  [[nodiscard]] bool take_message(Incoming& incoming);
  void refuse(Incoming& incoming, MPI_Message message, int bytes);
  void abandon();

  std::shared_ptr<Family> family_;
  MPI_Comm group_;
  int tag_;
  size_t largest_message_;
  int exceptions_ = std::uncaught_exceptions();
  std::vector<Incoming> incoming_;
  std::vector<MPI_Request> receives_;
  std::vector<MPI_Request> sends_;
  std::string error_;  // for whoever waits for this transfer
};

}  // namespace regard::mpi
