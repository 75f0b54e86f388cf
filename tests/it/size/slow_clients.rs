//! Clients that send slowly (issue 8, point 10).
