//! Capture in real network namespaces: what the kernel does with the rules, and the agent with whole pods.

mod agent;
mod net;
mod rules;
