#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel/even_parts.h"
#include "parallel/rank_order.h"
#include "parallel/rank_sum.h"
#include "parallel/traffic.h"
#include "regard/dtype.h"

namespace regard {

// What ranks send in exchanges one after the other, and how much of it leaves a host. `ranks_per_host` ranks in a row
// share one.
class ExchangeCount {
 public:
  ExchangeCount(int64_t ranks, int64_t ranks_per_host) : ranks_per_host_(ranks_per_host) {
    traffic_.ranks.resize(static_cast<size_t>(ranks));
    traffic_.between_hosts.resize(static_cast<size_t>(ranks));
  }

  // Ranks that exchange something: groups of equal size.
  struct Groups {
    int64_t size = 1;
    std::vector<int64_t> of;  // by rank: the number of its group

    [[nodiscard]] static Groups all(int64_t ranks) {
      return {.size = ranks, .of = std::vector<int64_t>(static_cast<size_t>(ranks), 0)};
    }
    [[nodiscard]] static Groups rows(const RankMesh& mesh) {
      Groups groups{.size = mesh.columns(), .of = {}};
      for (int64_t rank = 0; rank < mesh.rows() * mesh.columns(); ++rank) groups.of.push_back(mesh.row_of(rank));
      return groups;
    }
    [[nodiscard]] static Groups columns(const RankMesh& mesh) {
      Groups groups{.size = mesh.rows(), .of = {}};
      for (int64_t rank = 0; rank < mesh.rows() * mesh.columns(); ++rank) groups.of.push_back(mesh.column_of(rank));
      return groups;
    }
  };

  [[nodiscard]] LayerTraffic traffic() && { return std::move(traffic_); }
  [[nodiscard]] int64_t ranks() const { return std::ssize(traffic_.ranks); }

  // Each rank sends the same to every other one of its group: to_each(rank) bytes in all rounds.
  template <class ToEach>
  void gather(const Groups& groups, int64_t rounds, int64_t RankTraffic::*part, const ToEach& to_each) {
    if (groups.size == 1) return;
    for (int64_t rank = 0; rank < ranks(); ++rank) {
      int64_t near = 0;
      for_each_near(groups, rank, [&](int64_t) { ++near; });
      const int64_t bytes = to_each(rank);
      send(rank, part, bytes * (groups.size - 1), bytes * (groups.size - 1 - near));
    }
    count_rounds(groups, rounds);
  }

  // Partial sums on their way to the ranks that have own(rank) numbers of them each: a rank sends those of nodes[rank]
  // nodes of a tree.
  template <class Own>
  void scatter_sums(const Groups& groups, int64_t rounds, const Own& own, const std::vector<int64_t>& nodes,
                    DType wire) {
    if (groups.size == 1) return;
    std::vector<int64_t> numbers;
    std::vector<int64_t> all(static_cast<size_t>(ranks()));  // by group
    for (int64_t rank = 0; rank < ranks(); ++rank) {
      numbers.push_back(own(rank));
      all[static_cast<size_t>(groups.of[static_cast<size_t>(rank)])] += numbers.back();
    }
    for (int64_t rank = 0; rank < ranks(); ++rank) {
      int64_t near = 0;
      for_each_near(groups, rank, [&](int64_t other) { near += numbers[static_cast<size_t>(other)]; });
      const int64_t others =
          all[static_cast<size_t>(groups.of[static_cast<size_t>(rank)])] - numbers[static_cast<size_t>(rank)];
      send(rank, &RankTraffic::sums, RankSum::bytes_of(nodes[static_cast<size_t>(rank)], others, wire),
           RankSum::bytes_of(nodes[static_cast<size_t>(rank)], others - near, wire));
    }
    count_rounds(groups, rounds);
  }

  // Sums over groups that every rank of them gets: own(rank) numbers are a rank's part of all pieces. Each piece takes
  // two exchanges, of partial sums, and of sums.
  template <class Own>
  void all_reduce(const Groups& groups, int64_t pieces, const Own& own, const std::vector<int64_t>& nodes, DType wire,
                  DType sum) {
    scatter_sums(groups, pieces, own, nodes, wire);
    gather(groups, pieces, &RankTraffic::output,
           [&](int64_t rank) { return own(rank) * static_cast<int64_t>(size_of(sum)); });
  }

  void send_to(int64_t giver, int64_t taker, int64_t RankTraffic::*part, int64_t bytes) {
    send(giver, part, bytes, giver / ranks_per_host_ == taker / ranks_per_host_ ? 0 : bytes);
  }
  // Rounds in which each rank has a message for every other one of its group at most.
  void count_rounds(const Groups& groups, int64_t rounds) {
    traffic_.rounds += rounds;
    traffic_.messages += rounds * (groups.size - 1);
    if (leaves_hosts(groups)) traffic_.rounds_between_hosts += rounds;
  }

 private:
  void send(int64_t rank, int64_t RankTraffic::*part, int64_t bytes, int64_t between_hosts) {
    traffic_.ranks[static_cast<size_t>(rank)].*part += bytes;
    traffic_.between_hosts[static_cast<size_t>(rank)] += between_hosts;
  }

  // The other ranks of a rank's group on its host.
  template <class Visit>
  void for_each_near(const Groups& groups, int64_t rank, const Visit& visit) const {
    const int64_t first = rank / ranks_per_host_ * ranks_per_host_;
    for (int64_t other = first; other < std::min(first + ranks_per_host_, ranks()); ++other)
      if (other != rank && groups.of[static_cast<size_t>(other)] == groups.of[static_cast<size_t>(rank)]) visit(other);
  }

  [[nodiscard]] bool leaves_hosts(const Groups& groups) const {
    std::vector<int64_t> host_of(static_cast<size_t>(ranks()), -1);  // by group: that of its first rank
    for (int64_t rank = 0; rank < ranks(); ++rank) {
      int64_t& host = host_of[static_cast<size_t>(groups.of[static_cast<size_t>(rank)])];
      if (host == -1) host = rank / ranks_per_host_;
      if (host != rank / ranks_per_host_) return true;
    }
    return false;
  }

  int64_t ranks_per_host_;
  LayerTraffic traffic_;
};

}  // namespace regard
