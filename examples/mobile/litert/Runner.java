// A .tflite file in an Android app: scores of one image. Gradle: implementation("com.google.ai.edge.litert:litert:1.4.2")

package slimline.examples;

import java.io.File;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import org.tensorflow.lite.Interpreter;

public final class Runner implements AutoCloseable {
  private final Interpreter interpreter;

  public Runner(File model) {
    Interpreter.Options options = new Interpreter.Options();
    options.setNumThreads(1);
    interpreter = new Interpreter(model, options);
  }

  /** Scores of one input of {@code size} values, in the file's order: channels last for images. */
  public float[] scores(float[] input) {
    interpreter.resizeInput(0, first(interpreter.getInputTensor(0).shape()));
    ByteBuffer given = ByteBuffer.allocateDirect(4 * input.length).order(ByteOrder.nativeOrder());
    given.asFloatBuffer().put(input);
    float[][] scores = new float[1][interpreter.getOutputTensor(0).shape()[1]];
    interpreter.run(given, scores);
    return scores[0];
  }

  /** The shape for one sample. */
  private static int[] first(int[] shape) {
    int[] one = shape.clone();
    one[0] = 1;
    return one;
  }

  @Override
  public void close() {
    interpreter.close();
  }
}
