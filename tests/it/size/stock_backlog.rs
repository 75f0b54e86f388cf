//! Stock work after an outage of the Product Service (issue 8, point 1).
