#pragma once

#include <mpi.h>

#include <cstddef>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "regard/communicator.h"

namespace regard::mpi {

class MpiTransfer;

// What a group and those split from it share.
struct Family {
  int64_t bytes_sent = 0;
  std::vector<MpiTransfer*> under_way;

  // Whoever waits moves them all: ranks may wait in different orders, and what one does not move another waits for.
  void advance();
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

  // Does what can be done now.
  void advance();
  [[nodiscard]] bool over() const { return incoming_.empty() && requests_.empty(); }
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
  std::vector<MPI_Request> requests_;
  std::string error_;  // for whoever waits for this transfer
};

}  // namespace regard::mpi
