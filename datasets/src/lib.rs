//! A node's ZFS datasets: declared in one file, planned, applied, and compared with what is there.
//!
//! - [`Layout`] is what is declared: which datasets a node has ([`Member`], by [`Role`]), where they are mounted, and their properties. It is
//!   read from [`FILE_NAME`] in the node's folder, the mountpoint of the first of them.
//!
//! Nothing here destroys, renames or empties a dataset.

mod layout;
mod property;

pub use layout::{Declaration, Encryption, FILE_NAME, Layout, LayoutError, Member, Repo, Role, SHARDS_MAX};
