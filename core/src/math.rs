//! The few float functions that features need, from libm (exact) or micromath (`fast-math`, small).

/// Base-2 logarithm; the caller passes arguments of at least 1.
#[cfg(not(feature = "fast-math"))]
pub(crate) fn log2(x: f32) -> f32 {
    libm::log2f(x)
}

/// Base-2 logarithm; error bound in the tests of `features`.
#[cfg(feature = "fast-math")]
pub(crate) fn log2(x: f32) -> f32 {
    use micromath::F32Ext;
    <f32 as F32Ext>::log2(x)
}
