#include "cli/batch_folder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "support/sanitized.h"

namespace regard::test {

const TinyLlama kEndless{.context = 1024, .has_end_token = false};

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

std::vector<std::string> BatchFolder::command(std::vector<std::string> options) const {
  std::vector<std::string> words = {"batch", "-m", gguf, "-i", input, "-o", output};
  if (std::ranges::find(options, "--threads") == options.end()) options.insert(options.end(), {"--threads", "1"});
  words.insert(words.end(), options.begin(), options.end());
  return words;
}

std::string BatchFolder::run(const std::vector<std::string>& options) {
  if (std::ranges::find(options, "--resume") == options.end()) std::filesystem::remove(output);
  finished = run_command(command(options));
  EXPECT_EQ(finished.exit_code, 0) << finished.err;
  EXPECT_EQ(finished.out, "");
  return read_whole_file(output);
}

std::vector<Json> BatchFolder::results() {
  std::vector<Json> all;
  for (const std::string& line : lines_of(run())) all.push_back(Json::parse(line));
  return all;
}

std::string request(const std::string& id, const std::string& prompt, const Json& more) {
  Json json = {{"id", id}, {"prompt", prompt}};
  json.update(more);
  return json.dump() + "\n";
}

std::string long_work() {
  constexpr int kRequests = kSanitized ? 40 : 120;
  std::string lines;
  for (int i = 0; i < kRequests; ++i)
    lines += request("request " + std::to_string(i), "the inn and hen " + std::to_string(i * i),
                     {{"max_tokens", 900 + i % 50}, {"temperature", 1 + i % 3}, {"seed", i}});
  return lines;
}

std::vector<std::string> written_lines(const BatchFolder& folder) {
  if (!std::filesystem::exists(folder.output)) return {};
  const std::string text = read_whole_file(folder.output);
  EXPECT_TRUE(text.empty() || text.back() == '\n');
  return lines_of(text);
}

void wait_for_lines(const BatchFolder& folder, size_t before) {
  using namespace std::chrono_literals;
  for (int i = 0; i < 18000 && written_lines(folder).size() <= before; ++i) std::this_thread::sleep_for(10ms);
}

void expect_some_of(const std::vector<std::string>& lines, const std::vector<std::string>& all) {
  auto next = all.begin();
  for (const std::string& line : lines) {
    next = std::find(next, all.end(), line);
    ASSERT_NE(next, all.end()) << line;
    ++next;
  }
}

}  // namespace regard::test
