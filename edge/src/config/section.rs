//! One definition per option: its doc comment is the generated file's comment, its default stands
//! beside it.

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeValue, ValueDeserializer};

/// An option as the default file shows it.
pub(super) struct Shown {
    pub(super) key: &'static str,
    pub(super) doc: &'static [&'static str],
    /// `None`: shown as a comment, for it has no value by default.
    pub(super) value: Option<String>,
}

/// A table of the configuration file.
pub(super) trait Section: Default {
    /// The options in the file's order.
    fn shown(&self) -> Vec<Shown>;

    /// Takes one option; `None` where there is none of that name.
    fn set(&mut self, key: &str, value: Spanned<DeValue<'_>>) -> Option<Result<(), String>>;
}

/// Reads one value.
pub(super) fn value<T: DeserializeOwned>(value: Spanned<DeValue<'_>>) -> Result<T, String> {
    T::deserialize(ValueDeserializer::from(value)).map_err(|error| error.message().to_owned())
}

/// A value as TOML; `None` for an option without a value.
pub(super) fn text<T: serde::Serialize>(value: &T) -> Option<String> {
    toml::Value::try_from(value).ok().map(|value| value.to_string())
}

/// Defines the structs of the sections with documented fields and defaults.
macro_rules! sections {
    ($(
        $(#[doc = $about:literal])*
        $name:ident {
            $( $(#[doc = $doc:literal])* $key:ident: $type:ty = $default:expr, )*
        }
    )*) => { $(
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $( $(#[doc = $doc])* pub $key: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )* }
            }
        }

        impl $crate::config::section::Section for $name {
            fn shown(&self) -> Vec<$crate::config::section::Shown> {
                vec![$( $crate::config::section::Shown {
                    key: stringify!($key).trim_start_matches("r#"),
                    doc: &[$($doc),*],
                    value: $crate::config::section::text(&self.$key),
                }, )*]
            }

            fn set(
                &mut self,
                key: &str,
                value: toml::Spanned<toml::de::DeValue<'_>>,
            ) -> Option<Result<(), String>> {
                match key {
                    $( name if name == stringify!($key).trim_start_matches("r#") => Some($crate::config::section::value(value).map(|v| self.$key = v)), )*
                    _ => None,
                }
            }
        }
    )* };
}

pub(super) use sections;
