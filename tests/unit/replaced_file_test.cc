#include "tensor/replaced_file.h"

#include <gtest/gtest.h>

#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace regard::test {
namespace {

TEST(FileLock, OneOwnerAtATime) {
  const TempFolder folder;
  const std::string file = folder.file("file");
  EXPECT_FALSE(FileLock(file).open());
  {
    const FileLock first(file, true);
    EXPECT_TRUE(first.held());
    EXPECT_TRUE(FileLock(file).busy());
  }
  EXPECT_TRUE(FileLock(file).held());
}

// The old file keeps its lock, but is not the file that has the name.
TEST(FileLock, FollowsTheNameOfAFileThatIsReplaced) {
  const TempFolder folder;
  const std::string file = folder.write("file", "old");
  FileLock old(file);
  ReplacedFile next(file);
  next.stream() << "new";
  const FileLock lock = next.commit();
  EXPECT_EQ(read_whole_file(file), "new");
  EXPECT_TRUE(lock.held());
  old = FileLock();
  EXPECT_TRUE(FileLock(file).busy());
}

TEST(ReplacedFile, OnlyLeftoversWithoutAnOwnerAreRemoved) {
  const TempFolder folder;
  const std::string file = folder.file("file");
  const std::string abandoned = folder.write("file.17.tmp", "half");
  const std::string owned = folder.write("file.18.tmp", "half");
  {
    const FileLock owner(owned);
    const ReplacedFile next(file);
    EXPECT_FALSE(std::filesystem::exists(abandoned));
    EXPECT_TRUE(std::filesystem::exists(owned));
    // The process's own temporary file has an owner, too.
    EXPECT_ERROR(ReplacedFile(file), "another program writes");
  }
  const ReplacedFile next(file);
  EXPECT_FALSE(std::filesystem::exists(owned));
  EXPECT_FALSE(std::filesystem::exists(file));
}

}  // namespace
}  // namespace regard::test
