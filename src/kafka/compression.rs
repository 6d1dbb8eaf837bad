//! How the producer compresses what it sends.

/// A codec of Kafka.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// The default: ids are random, so commands shrink little, and the broker has less to do.
    #[default]
    None,
    /// Smallest of those built in, and slowest.
    Gzip,
    /// Fast.
    Snappy,
    /// Fast.
    Lz4,
}

/// Why a word names no codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    /// Kafka has it, but this build does not.
    #[error("zstd is not built in: use none, gzip, snappy or lz4")]
    NotBuiltIn,
    /// There is no such codec.
    #[error("must be none, gzip, snappy or lz4")]
    Unknown,
}

impl Compression {
    /// Reads a setting.
    ///
    /// # Errors
    /// [`CompressionError`].
    pub fn parse(word: &str) -> Result<Self, CompressionError> {
        match word {
            "none" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            "snappy" => Ok(Self::Snappy),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Err(CompressionError::NotBuiltIn),
            _ => Err(CompressionError::Unknown),
        }
    }

    /// As Kafka calls it.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::producer::BaseProducer;

    use super::*;

    fn is_taken_by_the_library(word: &str) -> bool {
        ClientConfig::new().set("compression.codec", word).create::<BaseProducer>().is_ok()
    }

    #[test]
    fn what_can_be_set_is_what_the_client_library_has() {
        for word in ["none", "gzip", "snappy", "lz4"] {
            assert_eq!(Compression::parse(word).map(Compression::word), Ok(word));
            assert!(is_taken_by_the_library(word), "{word}");
        }
        assert_eq!(Compression::parse("zstd"), Err(CompressionError::NotBuiltIn));
        assert!(!is_taken_by_the_library("zstd"), "it is built in now: offer it");
        assert_eq!(Compression::parse("LZ4"), Err(CompressionError::Unknown));
    }
}
