//! A simulator of a broker and its clients.

mod link;
mod time;
