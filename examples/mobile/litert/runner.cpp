// Runs a .tflite file on raw float32 values: runner MODEL.tflite INPUT.f32 [BATCH]
// The values are in the file's own order: channels last for images. Prints the outputs, one value a line, and on standard error
// the median milliseconds of a call.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <vector>

#include "tflite/interpreter.h"
#include "tflite/interpreter_builder.h"
#include "tflite/kernels/register.h"
#include "tflite/model_builder.h"

constexpr int kCalls = 50;

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::fprintf(stderr, "usage: %s MODEL.tflite INPUT.f32 [BATCH]\n", argv[0]);
    return 2;
  }
  const auto model = tflite::FlatBufferModel::BuildFromFile(argv[1]);
  if (model == nullptr) {
    std::fprintf(stderr, "%s is no .tflite file\n", argv[1]);
    return 2;
  }
  tflite::ops::builtin::BuiltinOpResolver resolver;  // with XNNPACK as its default delegate
  std::unique_ptr<tflite::Interpreter> interpreter;
  if (tflite::InterpreterBuilder(*model, resolver)(&interpreter, /*num_threads=*/1) != kTfLiteOk) return 1;

  const TfLiteIntArray* dims = interpreter->input_tensor(0)->dims;
  std::vector<int> shape(dims->data, dims->data + dims->size);
  shape[0] = argc == 4 ? std::atoi(argv[3]) : 1;
  interpreter->ResizeInputTensor(interpreter->inputs()[0], shape);
  if (interpreter->AllocateTensors() != kTfLiteOk) return 1;

  std::ifstream file(argv[2], std::ios::binary);
  const size_t bytes = interpreter->input_tensor(0)->bytes;
  if (!file.read(reinterpret_cast<char*>(interpreter->typed_input_tensor<float>(0)), bytes)) {
    std::fprintf(stderr, "%s holds fewer than %zu bytes\n", argv[2], bytes);
    return 2;
  }
  std::vector<double> taken;
  for (int call = 0; call < kCalls; ++call) {
    const auto start = std::chrono::steady_clock::now();
    if (interpreter->Invoke() != kTfLiteOk) return 1;
    taken.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  for (size_t place = 0; place < interpreter->outputs().size(); ++place) {
    const size_t count = interpreter->output_tensor(place)->bytes / sizeof(float);
    for (size_t i = 0; i < count; ++i) std::printf("%.9g\n", interpreter->typed_output_tensor<float>(place)[i]);
  }
  std::sort(taken.begin(), taken.end());
  std::fprintf(stderr, "median of %d calls: %.3f ms\n", kCalls, taken[kCalls / 2]);
  return 0;
}
