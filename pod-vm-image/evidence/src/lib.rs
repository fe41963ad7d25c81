//! Evidence formats, initdata digest and verifiers; pure, time as an argument.
