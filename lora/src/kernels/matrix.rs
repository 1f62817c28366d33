//! Matrix products on the CPU.

use super::few_rows;
use super::simd::Element;
use gemm::Parallelism;
use std::marker::PhantomData;
use std::ops::Range;

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

    /// Its numbers, if it is stored row by row.
    fn rows_in_order(&self) -> Option<&'a [T]> {
        let in_order = (self.row_step, self.column_step) == (self.columns, 1);
        in_order.then(|| &self.values[..self.rows * self.columns])
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

/// A part of a matrix that is stored row by row, to be written.
pub(crate) struct Tile<'a, T> {
    /// The first row and column of the part.
    first: (usize, usize),
    shape: (usize, usize),
    start: *mut T,
    row_step: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: a tile is an exclusive borrow of its numbers, as `tiles` says.
unsafe impl<T: Send> Send for Tile<'_, T> {}

impl<T> Tile<'_, T> {
    /// The rows of the matrix that the part lies in.
    pub(crate) fn rows(&self) -> Range<usize> {
        self.first.0..self.first.0 + self.shape.0
    }

    /// The columns of the matrix that the part lies in.
    pub(crate) fn columns(&self) -> Range<usize> {
        self.first.1..self.first.1 + self.shape.1
    }
}

/// Cuts a matrix of so many columns, stored row by row, into parts of this size; the last ones are
/// smaller. The parts do not overlap, so that each can be written on its own thread.
pub(crate) fn tiles<T>(y: &mut [T], columns: usize, size: (usize, usize)) -> Vec<Tile<'_, T>> {
    let rows = y.len().checked_div(columns).unwrap_or(0);
    let start = y.as_mut_ptr();
    let mut tiles = Vec::new();
    for row in (0..rows).step_by(size.0.max(1)) {
        for column in (0..columns).step_by(size.1.max(1)) {
            tiles.push(Tile {
                first: (row, column),
                shape: (size.0.min(rows - row), size.1.min(columns - column)),
                // SAFETY: the row and the column lie inside of the matrix.
                start: unsafe { start.add(row * columns + column) },
                row_step: columns,
                matrix: PhantomData,
            });
        }
    }
    tiles
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
    assert_eq!(y.len(), a.rows * b.columns, "a product of another size");
    if scale == T::ONE
        && let (Some(x), Some(w)) = (a.rows_in_order(), b.t().rows_in_order())
        && a.columns == b.rows
        && few_rows::are_few(a.rows, a.columns, b.columns)
    {
        return few_rows::product(y, x, w, a.columns, add, threads);
    }
    let mut whole = Tile {
        first: (0, 0),
        shape: (a.rows, b.columns),
        start: y.as_mut_ptr(),
        row_step: b.columns,
        matrix: PhantomData,
    };
    if a.columns == 0 && !add {
        y.fill(T::ZERO);
    }
    multiply_into(&mut whole, a, b, scale, add, threads);
}

/// As [`multiply`], into a part of a matrix. Factors without numbers in common add nothing.
///
/// # Panics
/// If the shapes do not fit: a bug of the caller.
#[track_caller]
pub(crate) fn multiply_into<T: Element>(
    y: &mut Tile<'_, T>,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    scale: T,
    add: bool,
    threads: Threads,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "matrices of shapes that do not fit");
    assert_eq!(y.shape, (m, n), "a product of another size");
    if k == 0 {
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
            y.start,
            1,
            y.row_step as isize,
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
