// Package kafka carries flows, findings and state between Postern's roles through
// Kafka, and reads what others (goflow2) put there.
//
// Delivery is at least once by Kafka and exactly once in effect: a consumer works
// in ranges of offsets that it records with the group's coordinator before anything
// is made of them, so that whoever takes a partition over repeats the open range
// under the same token.
package kafka
