#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>

namespace regard::cli {

// Each adds its subcommand with options, help and examples to the app. What a subcommand does runs in its callback,
// after parsing; it throws Error for bad input.
void add_generate(CLI::App& app);
void add_batch(CLI::App& app);
void add_score(CLI::App& app);
void add_logits(CLI::App& app);
void add_verify(CLI::App& app);
void add_inspect(CLI::App& app);
void add_attend(CLI::App& app);
void add_shard(CLI::App& app);
void add_bench(CLI::App& app);
void add_plan(CLI::App& app);
void add_show_config(CLI::App& app);

// The exit code where `regard verify` found an error that is too large.
inline constexpr int kNotVerified = 1;
// The exit code where all requests of a batch failed.
inline constexpr int kAllFailed = 1;
// The exit code where a command was stopped by Ctrl-C, SIGTERM or SIGHUP.
inline constexpr int kInterrupted = 130;

}  // namespace regard::cli
