// The key/value cache: what a cached row holds, and how it is read and stored. Define K_BINDING and V_BINDING; the
// including file has the constants N_KV_HEADS, HEAD_DIM, K_Q8_0, V_Q8_0 (1: q8_0 instead of float16, HEAD_DIM then a
// multiple of 32) and TABLE: which words of the table of blocks it reads. 0: it has one word an entry; of two, 1: the first,
// for layers that see the whole context; 2: the second, for layers with a window.
// A unit is what one head has in a cache block: KV_BLOCK rows of HEAD_DIM values. In float16 these are all; in q8_0
// rows of signed bytes come first, then rows of one float32 scale for each 32 values.
// Rows are read by eights of values, a uvec4 each: eight float16, or eight bytes in xy and their scale in z.
layout(std430, binding = K_BINDING) buffer KCache { uint k_cache[]; };
layout(std430, binding = K_BINDING) readonly buffer KCacheByTwo { uvec2 k_twos[]; };
layout(std430, binding = K_BINDING) readonly buffer KCacheByFour { uvec4 k_fours[]; };
layout(std430, binding = V_BINDING) buffer VCache { uint v_cache[]; };
layout(std430, binding = V_BINDING) readonly buffer VCacheByTwo { uvec2 v_twos[]; };
layout(std430, binding = V_BINDING) readonly buffer VCacheByFour { uvec4 v_fours[]; };

const uint EIGHTS = HEAD_DIM / 8;
const uint F16_WORDS = KV_BLOCK * HEAD_DIM / 2; // of a unit
const uint Q8_0_WORDS = KV_BLOCK * (HEAD_DIM / 4 + HEAD_DIM / 32);

// of a cached token, in the sequence whose blocks begin at entry `table`; its row is position % KV_BLOCK
uint unit_of(uint table, uint kv_head, uint position) {
  uint entry = table + position / KV_BLOCK;
  return block_table[TABLE == 0 ? entry : 2 * entry + TABLE - 1] * N_KV_HEADS + kv_head;
}

// where a row's words lie: of float16, of bytes (both from values 4 * four on), and the scale of values 32 * block on
uint half_word(uint unit, uint row, uint four) { return unit * F16_WORDS + row * (HEAD_DIM / 2) + 2 * four; }
uint byte_word(uint unit, uint row, uint four) { return unit * Q8_0_WORDS + row * (HEAD_DIM / 4) + four; }
uint scale_word(uint unit, uint row, uint block) {
  return unit * Q8_0_WORDS + KV_BLOCK * (HEAD_DIM / 4) + row * (HEAD_DIM / 32) + block;
}

uvec4 load_key(uint unit, uint row, uint eight) {
  if (K_Q8_0 == 0) return k_fours[unit * (F16_WORDS / 4) + row * EIGHTS + eight];
  uvec2 bytes = k_twos[unit * (Q8_0_WORDS / 2) + row * EIGHTS + eight];
  return uvec4(bytes, k_cache[scale_word(unit, row, eight / 4)], 0);
}

uvec4 load_value(uint unit, uint row, uint eight) {
  if (V_Q8_0 == 0) return v_fours[unit * (F16_WORDS / 4) + row * EIGHTS + eight];
  uvec2 bytes = v_twos[unit * (Q8_0_WORDS / 2) + row * EIGHTS + eight];
  return uvec4(bytes, v_cache[scale_word(unit, row, eight / 4)], 0);
}

#ifdef PLAIN
float largest_of_block(vec4 v[8]) {
  vec4 sizes = abs(v[0]);
  [[unroll]] for (uint k = 1; k < 8; k++) sizes = max(sizes, abs(v[k]));
  return max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
}
#endif

vec4 four_bytes(uint word) {
  int w = int(word);
  return vec4(bitfieldExtract(w, 0, 8), bitfieldExtract(w, 8, 8), bitfieldExtract(w, 16, 8), w >> 24);
}

// values 0-3 and 4-7 of an eight; those of q8_0 are still to be multiplied by scale_of
vec4 first_half(uvec4 eight, uint is_q8_0) {
  return is_q8_0 != 0 ? four_bytes(eight.x) : vec4(unpackHalf2x16(eight.x), unpackHalf2x16(eight.y));
}
vec4 second_half(uvec4 eight, uint is_q8_0) {
  return is_q8_0 != 0 ? four_bytes(eight.y) : vec4(unpackHalf2x16(eight.z), unpackHalf2x16(eight.w));
}
float scale_of(uvec4 eight, uint is_q8_0) { return is_q8_0 != 0 ? uintBitsToFloat(eight.z) : 1.0; }

// Four values as they are cached: two words of float16, or a word of bytes and the scale that eight neighbouring lanes,
// which have 32 values together, share. lane = gl_SubgroupInvocationID % 8.
// In the _plain modules an invocation has the 32 values and says what their largest is.
#ifdef PLAIN
uvec2 cached_four(vec4 v, float largest, uint is_q8_0) {
  if (is_q8_0 == 0) return uvec2(packHalf2x16(v.xy), packHalf2x16(v.zw));
#else
uvec2 cached_four(vec4 v, uint is_q8_0) {
  if (is_q8_0 == 0) return uvec2(packHalf2x16(v.xy), packHalf2x16(v.zw));
  vec4 sizes = abs(v);
  float largest = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
  [[unroll]] for (uint i = 0; i < 3; i++) largest = max(largest, subgroupShuffleXor(largest, 1u << i));
#endif
  uvec4 q = uvec4(ivec4(roundEven(v * (largest > 0.0 ? 127.0 / largest : 0.0)))) & 0xffu;
  return uvec2(q.x | q.y << 8 | q.z << 16 | q.w << 24, floatBitsToUint(largest / 127.0));
}

// stores values 4 * four to 4 * four + 3 of a row
void store_key(uint unit, uint row, uint four, uvec2 cached) {
  if (K_Q8_0 == 0) {
    k_cache[half_word(unit, row, four)] = cached.x;
    k_cache[half_word(unit, row, four) + 1] = cached.y;
  } else {
    k_cache[byte_word(unit, row, four)] = cached.x;
    if (four % 8 == 0) k_cache[scale_word(unit, row, four / 8)] = cached.y;
  }
}

void store_value(uint unit, uint row, uint four, uvec2 cached) {
  if (V_Q8_0 == 0) {
    v_cache[half_word(unit, row, four)] = cached.x;
    v_cache[half_word(unit, row, four) + 1] = cached.y;
  } else {
    v_cache[byte_word(unit, row, four)] = cached.x;
    if (four % 8 == 0) v_cache[scale_word(unit, row, four / 8)] = cached.y;
  }
}
