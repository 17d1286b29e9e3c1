//! The D-Bus role: the connection, the object tree, and the API of ten revisions as one table.
pub mod changes;
pub mod encode;
pub mod facts;
pub mod fragment;
pub mod table;
pub mod tree;
pub mod value;
pub mod xml;
