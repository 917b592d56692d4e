// A .pte file in an Android app: scores of one image. Gradle: implementation("org.pytorch:executorch-android:1.5.1")

package slimline.examples;

import org.pytorch.executorch.EValue;
import org.pytorch.executorch.Module;
import org.pytorch.executorch.Tensor;

public final class Runner implements AutoCloseable {
  private final Module module;

  /** {@code model}: path of a file, such as one copied from the app's assets into its cache folder. */
  public Runner(String model) {
    module = Module.load(model);
  }

  /** Scores of one input; {@code shape} is as the model was trained, the batch first: {1, 3, 32, 32}. */
  public float[] scores(float[] input, long[] shape) {
    EValue[] outputs = module.forward(EValue.from(Tensor.fromBlob(input, shape)));
    return outputs[0].toTensor().getDataAsFloatArray();
  }

  /** Place of the largest score. */
  public static int best(float[] scores) {
    int best = 0;
    for (int i = 1; i < scores.length; i++) {
      if (scores[i] > scores[best]) best = i;
    }
    return best;
  }

  @Override
  public void close() {
    module.close();
  }
}
