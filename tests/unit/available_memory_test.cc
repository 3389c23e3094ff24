#include "tensor/available_memory.h"

#include <gtest/gtest.h>

#include "support/temp_folder.h"

namespace regard::test {
namespace {

constexpr int64_t kMegabyte = 1 << 20;

// A root folder with a machine of 1,000 MB available.
struct Root : TempFolder {
  Root() {
    add("proc/meminfo", "MemTotal:       9999999 kB\nMemFree: 5 kB\nMemAvailable:    1024000 kB\nBuffers: 1 kB\n");
  }
  void add(const std::string& name, const std::string& text) {
    std::filesystem::create_directories((path() / name).parent_path());
    (void)write(name, text);
  }
  void add_megabytes(const std::string& name, int64_t megabytes) {
    add(name, std::to_string(megabytes * kMegabyte) + "\n");
  }
  [[nodiscard]] int64_t megabytes() const { return available_memory_bytes(path()).value() / kMegabyte; }
};

TEST(AvailableMemory, WithoutLimitsItIsTheMachines) {
  Root root;
  EXPECT_EQ(root.megabytes(), 1000);
  root.add("proc/self/cgroup", "0::/user.slice\n");
  root.add("sys/fs/cgroup/user.slice/memory.max", "max\n");
  root.add_megabytes("sys/fs/cgroup/user.slice/memory.current", 10);
  EXPECT_EQ(root.megabytes(), 1000);
}

TEST(AvailableMemory, TheNarrowestGroupOfVersion2Decides) {
  Root root;
  root.add("proc/self/cgroup", "0::/job/step\n");
  root.add("sys/fs/cgroup/job/step/memory.max", "max\n");
  root.add_megabytes("sys/fs/cgroup/job/step/memory.current", 10);
  root.add_megabytes("sys/fs/cgroup/job/memory.max", 300);
  root.add_megabytes("sys/fs/cgroup/job/memory.current", 120);
  EXPECT_EQ(root.megabytes(), 180);
  // What a group can drop of files is free for it.
  root.add("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 20971520\nactive_file 31457280\n");
  EXPECT_EQ(root.megabytes(), 200);
  root.add_megabytes("sys/fs/cgroup/job/step/memory.max", 50);
  EXPECT_EQ(root.megabytes(), 40);
  // More in use than a lowered limit allows.
  root.add_megabytes("sys/fs/cgroup/job/step/memory.max", 5);
  EXPECT_EQ(root.megabytes(), 0);
}

// A container sees its own group at the top, and may be told the path that the host gives it.
TEST(AvailableMemory, AContainersLimitIsAtTheTop) {
  for (const char* path : {"/", "/docker/0123"}) {
    Root root;
    root.add("proc/self/cgroup", std::string("12:cpu,cpuacct:/\n4:memory:") + path + "\n0::" + path + "\n");
    root.add_megabytes("sys/fs/cgroup/memory/memory.limit_in_bytes", 400);
    root.add_megabytes("sys/fs/cgroup/memory/memory.usage_in_bytes", 100);
    EXPECT_EQ(root.megabytes(), 300) << path;
    root.add("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 52428800\n");
    EXPECT_EQ(root.megabytes(), 350) << path;
    root.add_megabytes("sys/fs/cgroup/memory.max", 250);
    root.add_megabytes("sys/fs/cgroup/memory.current", 50);
    EXPECT_EQ(root.megabytes(), 200) << path;
  }
}

TEST(AvailableMemory, VersionOneHasNoLimitWhereItIsHuge) {
  Root root;
  root.add("proc/self/cgroup", "4:blkio,memory:/\n");
  root.add("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  root.add_megabytes("sys/fs/cgroup/memory/memory.usage_in_bytes", 100);
  EXPECT_EQ(root.megabytes(), 1000);
}

TEST(AvailableMemory, ASystemThatDoesNotTellHasNone) {
  const TempFolder root;
  EXPECT_FALSE(available_memory_bytes(root.path()).has_value());
}

}  // namespace
}  // namespace regard::test
