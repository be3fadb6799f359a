// matrix_layout: which elements of a matrix each lane of a subgroup holds, in the order in which it names them
// bindings: source found
// constants: local_size matrix_m matrix_n matrix_k of_tokens
// push:
// dispatch: one workgroup of one subgroup
// subgroup: basic
// requires: full subgroups; cooperative_matrix (float16 to float32), fp16
// numerics: exact; element (row or token, k) is row * matrix_k + k, below 2048
// source: own
//
// found has 32 words for each lane: its elements, 0xffffffff where it has fewer. Vulkan leaves this to the driver.
#version 450
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint MATRIX_M = 16;
layout(constant_id = 2) const uint MATRIX_N = 16;
layout(constant_id = 3) const uint MATRIX_K = 16;
layout(constant_id = 4) const uint OF_TOKENS = 0; // the matrix behind, of columns that are tokens; or the one before, of rows
layout(std430, binding = 0) readonly buffer Source { uvec4 source[]; };
layout(std430, binding = 1) writeonly buffer Found { uint found[]; };

void main() {
  if (OF_TOKENS != 0) {
    coopmat<float16_t, gl_ScopeSubgroup, MATRIX_K, MATRIX_N, gl_MatrixUseB> b;
    coopMatLoad(b, source, 0, MATRIX_K / 8, gl_CooperativeMatrixLayoutColumnMajor);
    for (uint i = 0; i < 32; i++) {
      found[gl_SubgroupInvocationID * 32 + i] = i < b.length() ? uint(b[i]) : 0xffffffffu;
    }
    return;
  }
  coopmat<float16_t, gl_ScopeSubgroup, MATRIX_M, MATRIX_K, gl_MatrixUseA> a;
  coopMatLoad(a, source, 0, MATRIX_K / 8, gl_CooperativeMatrixLayoutRowMajor);
  for (uint i = 0; i < 32; i++) {
    found[gl_SubgroupInvocationID * 32 + i] = i < a.length() ? uint(a[i]) : 0xffffffffu;
  }
}
