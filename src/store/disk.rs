//! The backing store on a Linux directory: every system call of the data path. Knows no encryption.
