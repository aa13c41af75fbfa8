//! Prints the support matrix, which is kept in docs/support-matrix.md.

fn main() {
    print!("{}", carob_api::support::matrix_markdown());
}
