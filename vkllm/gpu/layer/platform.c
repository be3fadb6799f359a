/* Time and hashes: what the other files need of the operating system, besides locks, and of arithmetic. */
#include <errno.h>
#include <time.h>

#include "layer.h"

uint64_t clock_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void sleep_ns(uint64_t duration_ns) {
  struct timespec rest = {(time_t)(duration_ns / 1000000000u), (long)(duration_ns % 1000000000u)};
  while (nanosleep(&rest, &rest) && errno == EINTR) {}
}

Hash hash_more(Hash hash, const void *data, size_t n_bytes) {
  const unsigned char *bytes = data;
  for (size_t i = 0; i < n_bytes; i++) {
    hash.a = (hash.a ^ bytes[i]) * 0x100000001b3ull;
    hash.b = (hash.b + bytes[i] + 1) * 0x9e3779b97f4a7c15ull;
  }
  return hash;
}
Hash hash_of(const void *data, size_t n_bytes) {
  return hash_more((Hash){0xcbf29ce484222325ull, 0x6c62272e07bb0142ull}, data, n_bytes);
}
