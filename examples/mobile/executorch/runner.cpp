// Runs a .pte file on raw float32 values: runner MODEL.pte INPUT.f32 N,C,H,W
// Prints the outputs, one value a line, and on standard error the median milliseconds of a call.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::extension::Module;

constexpr int kCalls = 50;

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s MODEL.pte INPUT.f32 N,C,H,W\n", argv[0]);
    return 2;
  }
  std::vector<SizesType> shape;
  std::stringstream sizes(argv[3]);
  for (std::string size; std::getline(sizes, size, ',');) shape.push_back(std::atoi(size.c_str()));
  size_t count = 1;
  for (SizesType size : shape) count *= size;

  std::vector<float> input(count);
  std::ifstream file(argv[2], std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(input.data()), count * sizeof(float))) {
    std::fprintf(stderr, "%s holds fewer than %zu float32 values\n", argv[2], count);
    return 2;
  }

  Module module(argv[1]);
  auto tensor = executorch::extension::from_blob(input.data(), shape, ScalarType::Float);
  std::vector<double> taken;
  for (int call = 0; call < kCalls; ++call) {
    const auto start = std::chrono::steady_clock::now();
    const auto outputs = module.forward(tensor);
    const auto end = std::chrono::steady_clock::now();
    if (!outputs.ok()) {
      std::fprintf(stderr, "ExecuTorch stopped: error 0x%x\n", static_cast<unsigned>(outputs.error()));
      return 1;
    }
    taken.push_back(std::chrono::duration<double, std::milli>(end - start).count());
    if (call > 0) continue;
    for (const auto& output : *outputs) {
      const auto values = output.toTensor();
      for (ssize_t i = 0; i < values.numel(); ++i) std::printf("%.9g\n", values.const_data_ptr<float>()[i]);
    }
  }
  std::sort(taken.begin(), taken.end());
  std::fprintf(stderr, "median of %d calls: %.3f ms\n", kCalls, taken[kCalls / 2]);
  return 0;
}
