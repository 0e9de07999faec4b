// What a CUDA graph costs: a kernel node in a chain, a relaunch, a launch without a graph.
#include <chrono>

#include "micro.h"

__global__ void nothing() {}

template <typename Call>
double microseconds(int times, Call call) {
  call();
  CHECK(cudaDeviceSynchronize());
  auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < times; ++i) call();
  CHECK(cudaDeviceSynchronize());
  std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - begin;
  return spent.count() / times;
}

int main() {
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  double period[2];
  const int nodes[2] = {1, 1001};
  for (int i = 0; i < 2; ++i) {
    cudaGraph_t graph;
    cudaGraphExec_t run;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int node = 0; node < nodes[i]; ++node) nothing<<<1, 32, 0, stream>>>();
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&run, graph, 0));
    period[i] = microseconds(1000, [&] { CHECK(cudaGraphLaunch(run, stream)); });
    CHECK(cudaGraphExecDestroy(run));
    CHECK(cudaGraphDestroy(graph));
  }
  report("graph_relaunch_one_node", period[0], "us");
  report("graph_node_in_a_chain", (period[1] - period[0]) / 1000, "us");
  report("plain_launch", microseconds(10000, [&] { nothing<<<1, 32, 0, stream>>>(); }), "us");
  CHECK(cudaGetLastError());
  return 0;
}
