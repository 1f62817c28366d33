//! Matrix products on the CPU.

use super::simd::Element;
use gemm::Parallelism;

/// A matrix in memory, with the steps from row to row and from column to column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
    row_step: usize,
    column_step: usize,
}

impl<'a, T: Element> Matrix<'a, T> {
    /// A matrix stored row by row.
    #[track_caller]
    pub(crate) fn new(values: &'a [T], rows: usize, columns: usize) -> Self {
        Self::with_steps(values, (rows, columns), (columns, 1))
    }

    /// A matrix with these steps from row to row and from column to column.
    #[track_caller]
    pub(crate) fn with_steps(
        values: &'a [T],
        (rows, columns): (usize, usize),
        (row_step, column_step): (usize, usize),
    ) -> Self {
        let matrix = Self {
            values,
            rows,
            columns,
            row_step,
            column_step,
        };
        assert!(
            matrix.span() <= values.len(),
            "a matrix larger than its values"
        );
        matrix
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// The steps from row to row and from column to column.
    pub(crate) fn steps(&self) -> (usize, usize) {
        (self.row_step, self.column_step)
    }

    /// The memory that it lies in.
    pub(crate) fn values(&self) -> &'a [T] {
        self.values
    }

    /// The transposed matrix, a view.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_step: self.column_step,
            column_step: self.row_step,
            ..self
        }
    }

    fn span(&self) -> usize {
        match self.rows * self.columns {
            0 => 0,
            _ => (self.rows - 1) * self.row_step + (self.columns - 1) * self.column_step + 1,
        }
    }
}

/// Whether a product may use all threads, or runs on one because its caller is parallel already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    All,
    One,
}

/// y = scale·a·b, or y += scale·a·b with `add`; y is stored row by row.
///
/// # Panics
/// If the shapes do not fit: a bug of the caller.
#[track_caller]
pub(crate) fn multiply<T: Element>(
    y: &mut [T],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    scale: T,
    add: bool,
    threads: Threads,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "matrices of shapes that do not fit");
    assert_eq!(y.len(), m * n, "a product of another size");
    if k == 0 {
        if !add {
            y.fill(T::ZERO);
        }
        return;
    }
    let parallelism = match threads {
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
        Threads::One => Parallelism::None,
    };
    // SAFETY: both matrices lie inside of their slices (checked when they were made), y is of the
    // product's size and exclusively borrowed, and T is f32 or f64, which gemm handles.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.values.as_ptr(),
            a.column_step as isize,
            a.row_step as isize,
            b.values.as_ptr(),
            b.column_step as isize,
            b.row_step as isize,
            T::ONE,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
