//! stub
use super::simd::Element;
pub(crate) fn forward_rows<T: Element>(
    _x: &[T],
    _y: &mut [T],
    _width: usize,
    _eps: f64,
    _rm: bool,
    _w: Option<&[T]>,
    _b: Option<&[T]>,
    _stats: &mut [T],
) {
}
pub(crate) fn backward_rows<T: Element>(
    _x: &[T],
    _g: &[T],
    _stats: &[T],
    _w: Option<&[T]>,
    _out: &mut [T],
    _width: usize,
    _rm: bool,
) {
}
