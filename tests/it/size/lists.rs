//! Pages of the lists at many orders (issue 8, point 9).
