package exporter

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/postern/postern/flow"
)

// Packet is a datagram with the stamp and the addresses it has in a capture.
type Packet struct {
	At       flow.Time
	Src, Dst netip.AddrPort // of one family
	Payload  []byte
}

// snapLen is what a capture says it kept of a packet: more than a UDP datagram can be.
const snapLen = 1 << 18

// WritePcap writes a capture (pcap, Ethernet) of UDP datagrams in the order given.
func WritePcap(w io.Writer, packets []Packet) error {
	out := pcapgo.NewWriter(w)
	if err := out.WriteFileHeader(snapLen, layers.LinkTypeEthernet); err != nil {
		return fmt.Errorf("exporter: pcap: %w", err)
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	for i, p := range packets {
		src, dst := p.Src.Addr().Unmap(), p.Dst.Addr().Unmap()
		if src.Is4() != dst.Is4() {
			return errors.New("exporter: pcap: source and destination are of different families")
		}
		eth := layers.Ethernet{
			SrcMAC:       net.HardwareAddr{0x02, 0, 0, 0, 0, 1},
			DstMAC:       net.HardwareAddr{0x02, 0, 0, 0, 0, 2},
			EthernetType: layers.EthernetTypeIPv4,
		}
		udp := layers.UDP{SrcPort: layers.UDPPort(p.Src.Port()), DstPort: layers.UDPPort(p.Dst.Port())}
		var ip interface {
			gopacket.SerializableLayer
			gopacket.NetworkLayer
		}
		if src.Is4() {
			ip = &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		} else {
			eth.EthernetType = layers.EthernetTypeIPv6
			ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		}
		if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
			return fmt.Errorf("exporter: pcap: %w", err)
		}
		if err := gopacket.SerializeLayers(buf, opts, &eth, ip, &udp, gopacket.Payload(p.Payload)); err != nil {
			return fmt.Errorf("exporter: pcap: packet %d: %w", i, err)
		}
		frame := buf.Bytes()
		info := gopacket.CaptureInfo{Timestamp: p.At.Std(), CaptureLength: len(frame), Length: len(frame)}
		if err := out.WritePacket(info, frame); err != nil {
			return fmt.Errorf("exporter: pcap: %w", err)
		}
	}
	return nil
}
