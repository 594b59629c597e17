//! Small strided matrix products on the calling thread, by the `gemm` crate.

use gemm::Parallelism;

/// A strided matrix that is read. Element `(i, j)` is `data[i * rs + j * cs]`.
#[derive(Clone, Copy)]
pub(in crate::compute) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    rs: usize,
    cs: usize,
}

/// A strided matrix that is written; rows do not overlap.
pub(in crate::compute) struct ViewMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    rs: usize,
}

/// Smallest length that holds the last element; 0 for an empty matrix.
fn span(rows: usize, cols: usize, rs: usize, cs: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * rs + (cols - 1) * cs + 1 }
}

impl<'a> View<'a> {
    /// Row-major `(rows, cols)` with `stride` values from row to row.
    ///
    /// # Panics
    /// When `data` is too short: a bug of the caller, caught before memory is touched.
    pub(in crate::compute) fn new(
        data: &'a [f32],
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Self {
        assert!(span(rows, cols, stride, 1) <= data.len(), "a view past its buffer");
        View { data, rows, cols, rs: stride, cs: 1 }
    }

    /// The transposed view.
    pub(in crate::compute) fn t(self) -> Self {
        View { rows: self.cols, cols: self.rows, rs: self.cs, cs: self.rs, ..self }
    }
}

impl<'a> ViewMut<'a> {
    /// Row-major `(rows, cols)` with `stride >= cols` values from row to row.
    ///
    /// # Panics
    /// When `data` is too short or rows overlap: a bug of the caller.
    pub(in crate::compute) fn new(
        data: &'a mut [f32],
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Self {
        assert!(span(rows, cols, stride, 1) <= data.len(), "a view past its buffer");
        assert!(rows <= 1 || stride >= cols, "rows of a written view overlap");
        ViewMut { data, rows, cols, rs: stride }
    }
}

/// `dst = scale · lhs · rhs`, or `dst += …` with `add`.
///
/// # Panics
/// When the shapes do not fit: a bug of the caller.
pub(in crate::compute) fn gemm(dst: ViewMut<'_>, add: bool, lhs: View, rhs: View, scale: f32) {
    assert!(
        dst.rows == lhs.rows && dst.cols == rhs.cols && lhs.cols == rhs.rows,
        "shapes of a product do not fit"
    );
    if dst.rows == 0 || dst.cols == 0 {
        return;
    }
    // SAFETY: the views checked that every element is inside its buffer; `dst` is borrowed
    // mutably, so it overlaps neither operand; strides are below isize::MAX because slices are.
    unsafe {
        gemm::gemm(
            dst.rows,
            dst.cols,
            lhs.cols,
            dst.data.as_mut_ptr(),
            1,
            dst.rs as isize,
            add,
            lhs.data.as_ptr(),
            lhs.cs as isize,
            lhs.rs as isize,
            rhs.data.as_ptr(),
            rhs.cs as isize,
            rhs.rs as isize,
            1.0f32,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
