#include "layers/shared_tokens.h"

#include <algorithm>
#include <cstring>

#include "kernels/workspace.h"
#include "parallel/messages.h"
#include "tensor/fail.h"

namespace regard {
namespace {

int64_t tokens_of(const kernels::AttendCall& call) {
  int64_t tokens = 0;
  for (const kernels::AttendSpan& span : call.spans) tokens = std::max(tokens, span.first_token + span.count);
  return tokens;
}

std::vector<std::byte> copy_of(const float* numbers, int64_t count) {
  const auto* bytes = reinterpret_cast<const std::byte*>(numbers);
  return {bytes, bytes + count * static_cast<int64_t>(sizeof(float))};
}

}  // namespace

TokenKeepers::TokenKeepers(const AttentionShard& shard) {
  const int64_t head = shard.kv_heads().front();
  for (int64_t index = 0; index < shard.token_share().ranks; ++index)
    for (int64_t column = 0; column < shard.row->size(); ++column)
      if (shard.kv_heads_of(column).front() == head && shard.token_share_of(column).index == index) {
        columns.push_back(column);
        shares.push_back(shard.token_share_of(column));
      }
}

SharedTokens::SharedTokens(const AttentionShard& shard, bool by_block, Workspace& workspace)
    : shard_(shard), by_block_(by_block), workspace_(workspace), members_(shard) {}

// One message a member; nothing for the rest of the row.
void SharedTokens::exchange(std::vector<std::vector<std::byte>> sent,
                            std::vector<std::vector<std::byte>>& received) const {
  std::vector<std::span<const std::byte>> send(static_cast<size_t>(shard_.row->size()));
  std::vector<std::span<std::byte>> receive(send.size());
  for (size_t i = 0; i < members_.columns.size(); ++i) {
    const auto column = static_cast<size_t>(members_.columns[i]);
    send[column] = sent[i];
    receive[column] = received[i];
  }
  shard_.row->exchange(send, receive);
}

// The queries of all members: [tokens][members][width].
std::vector<float> SharedTokens::gather_queries(const float* own, int64_t tokens, int64_t width) {
  const auto bytes = static_cast<size_t>(tokens * width) * sizeof(float);
  const std::vector<std::vector<std::byte>> sent(members_.columns.size(), copy_of(own, tokens * width));
  std::vector<std::vector<std::byte>> received(members_.columns.size(), std::vector<std::byte>(bytes));
  exchange(sent, received);
  const auto members = std::ssize(members_.columns);
  std::vector<float> all(static_cast<size_t>(tokens * members * width));
  for (int64_t member = 0; member < members; ++member) {
    const auto* from = reinterpret_cast<const float*>(received[static_cast<size_t>(member)].data());
    for (int64_t token = 0; token < tokens; ++token)
      std::copy_n(from + token * width, width, all.data() + (token * members + member) * width);
  }
  return all;
}

// How many sets of partials a member makes of tokens that see positions up to `last`.
int64_t SharedTokens::sets_of(const TokenShare& share, int64_t last) const {
  return by_block_ ? kernels::blocks(share.count_below(last + 1)) : 1;
}

void SharedTokens::attend(const kernels::AttendCall& call) {
  const int64_t tokens = tokens_of(call);
  const TokenShare own = shard_.token_share();
  const auto members = std::ssize(members_.columns);
  const int64_t heads = call.shape.heads;
  const int64_t numbers = heads * kernels::partial_numbers(call.shape);  // of a token, of one member
  const std::vector<float> queries =
      gather_queries(reinterpret_cast<const float*>(call.queries), tokens, heads * call.shape.head_dim);
  std::vector<Interval> visible(static_cast<size_t>(tokens));
  int64_t last = -1;
  for (size_t i = 0; i < visible.size(); ++i) {
    const Interval seen = call.visible[i];
    if (seen.empty()) continue;
    last = std::max(last, seen.last);
    visible[i] = {own.count_below(seen.first), own.count_below(seen.last + 1) - 1};
  }
  kernels::AttendCall all = call;
  all.shape.heads = members * heads;
  all.shape.sinks = nullptr;
  all.queries = reinterpret_cast<const std::byte*>(queries.data());
  all.visible = visible.data();
  const int64_t own_sets = sets_of(own, last);
  // Where no row sees anything, there still is a set that says so.
  const int64_t made_sets = std::max<int64_t>(1, own_sets);
  std::vector<float> partials(static_cast<size_t>(made_sets * tokens * members * numbers));
  kernels::attend_partials(all, made_sets, partials.data(), workspace_.memory().attend, workspace_.threads(),
                           workspace_.options());
  std::vector<std::vector<std::byte>> sent, received;
  for (int64_t member = 0; member < members; ++member) {
    auto& message = sent.emplace_back(static_cast<size_t>(own_sets * tokens * numbers) * sizeof(float));
    for (int64_t row = 0; row < own_sets * tokens; ++row)
      std::memcpy(message.data() + static_cast<size_t>(row * numbers) * sizeof(float),
                  partials.data() + (row * members + member) * numbers, static_cast<size_t>(numbers) * sizeof(float));
    received.emplace_back(
        static_cast<size_t>(sets_of(members_.shares[static_cast<size_t>(member)], last) * tokens * numbers) *
        sizeof(float));
  }
  exchange(std::move(sent), received);
  // In the order of positions: blocks are dealt to the members in turn.
  std::vector<const float*> sets;
  const int64_t rounds = by_block_ ? kernels::blocks(last + 1) : members;
  for (int64_t set = 0; set < rounds; ++set)
    sets.push_back(reinterpret_cast<const float*>(received[static_cast<size_t>(set % members)].data()) +
                   set / members * tokens * numbers);
  if (sets.empty()) sets.push_back(partials.data());
  kernels::finish_partials(call, sets, workspace_.memory().attend, workspace_.threads(), workspace_.options());
}

void accept_shared(const AttentionShard& shard, KvCache& cache, int64_t slot, int64_t first_position,
                   std::span<const int64_t> indices) {
  const TokenShare own = shard.token_share();
  const TokenKeepers keepers(shard);
  const auto accepted = std::ssize(indices);
  for (int64_t i = 0; i < accepted; ++i)
    require(indices[static_cast<size_t>(i)] > (i == 0 ? -1 : indices[static_cast<size_t>(i - 1)]),
            "attention: accepted index {} is {}, expected rising ones from 0 on", i, indices[static_cast<size_t>(i)]);
  const int64_t end = indices.empty() ? first_position : first_position + indices.back() + 1;
  const auto complete = shard.row->gather(static_cast<char>(cache.length(slot) >= own.count_below(end)));
  require(std::ranges::count(complete, char{0}) == 0,
          "attention: tokens up to position {} of slot {} are to be accepted, but fewer are stored", end - 1, slot);

  const int64_t heads = cache.num_key_value_heads();
  const int64_t token_bytes = heads * cache.stored_bytes();
  std::vector<std::byte> token(static_cast<size_t>(token_bytes));
  const auto each_head = [&](auto&& visit) {
    for (int64_t head = 0; head < heads; ++head) visit(head, token.data() + head * cache.stored_bytes());
  };
  // Each accepted token goes from who keeps it to who keeps its new position: perhaps the same.
  const auto for_each_move = [&](auto&& visit) {
    for (int64_t i = 0; i < accepted; ++i) {
      const int64_t from = first_position + indices[static_cast<size_t>(i)];
      visit(from, keepers.keeper_of(from), keepers.keeper_of(first_position + i));
    }
  };
  const auto self = static_cast<size_t>(own.index);
  Messages messages(shard.row->size());
  for_each_move([&](int64_t from, size_t giver, size_t taker) {
    if (taker == self) messages.expect(keepers.columns[giver], token_bytes);
    if (giver != self) return;
    each_head([&](int64_t head, std::byte* to) { cache.get_stored(slot, own.count_below(from), head, to); });
    messages.send(keepers.columns[taker], token.data(), token_bytes);
  });
  messages.exchange(*shard.row);
  const int64_t place = own.count_below(first_position);
  cache.truncate(slot, place);
  const int64_t length = own.count_below(first_position + accepted);
  if (length > place) cache.extend(slot, place, length);
  int64_t index = place;
  for_each_move([&](int64_t, size_t giver, size_t taker) {
    if (taker != self) return;
    messages.take(keepers.columns[giver], token.data(), token_bytes);
    each_head([&](int64_t head, const std::byte* from) { cache.put_stored(slot, index, head, from); });
    ++index;
  });
}

}  // namespace regard
