package detect

import "github.com/postern/postern/flow"

// class is what sort of service a session reached, as far as moving from host to host goes.
type class uint8

// The classes of remote administration, in the order of their names in docs; classOther is all else.
const (
	classOther class = iota
	classSSH
	classRDP
	classSMB
	classWinRM
	classRPC // the endpoint mapper and the dynamic ports it hands out: WMI, DCOM, services, tasks
	classVNC
	classShell      // telnet and the r-commands
	classKubernetes // API server, kubelet, etcd
	classDocker
	classDatabase
	classes
)

var classTexts = [classes]string{"other", "SSH", "RDP", "SMB", "WinRM", "RPC", "VNC", "remote shell", "Kubernetes API", "Docker API", "database"}

func (c class) String() string { return classTexts[c] }

// administers says whether who reaches this class can run something there. Databases are
// reached by every application; what is odd about them is told by less weight.
func (c class) administers() bool { return c != classOther }

// techniqueOf is the MITRE ATT&CK technique of moving by a class; empty where there is none.
func (c class) technique() string {
	switch c {
	case classSSH:
		return "T1021.004"
	case classRDP:
		return "T1021.001"
	case classSMB:
		return "T1021.002"
	case classWinRM:
		return "T1021.006"
	case classVNC:
		return "T1021.005"
	case classRPC:
		return "T1021.003"
	case classOther, classDatabase:
		return ""
	}
	return "T1021"
}

const (
	portDynamicLow = 49152 // RFC 6335, section 6; Windows hands out from here
)

// classOf is the class of a service by its port. Ports as IANA and the products' own
// documentation assign them.
func classOf(proto uint8, port uint16) class {
	switch {
	case proto == flow.ProtoTCP:
		return tcpClasses[port]
	case proto == flow.ProtoUDP && port == 3389:
		return classRDP
	}
	return classOther
}

// tcpClasses are the classes of all ports of TCP: each session is asked for one.
var tcpClasses = func() (all [1 << 16]class) {
	for port := range all {
		all[port] = classOfTCP(uint16(port))
	}
	return all
}()

func classOfTCP(port uint16) class {
	switch {
	case port == 22:
		return classSSH
	case port == 3389:
		return classRDP
	case port == 445, port == 139:
		return classSMB
	case port == 5985, port == 5986, port == 47001:
		return classWinRM
	case flow.EndpointMapper(flow.ProtoTCP, port):
		return classRPC
	case port >= 5900 && port <= 5909:
		return classVNC
	case port == 23, port >= 512 && port <= 514:
		return classShell
	case port == 6443, port == 10250, port == 2379, port == 2380:
		return classKubernetes
	case port == 2375, port == 2376:
		return classDocker
	case port == 1433, port == 1521, port == 3306, port == 5432, port == 27017, port == 6379, port == 9200, port == 50000:
		return classDatabase
	}
	return classOther
}
