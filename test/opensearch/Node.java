import org.codelibs.opensearch.runner.OpenSearchRunner;

/** Runs one OpenSearch node in a folder, with its HTTP interface at a port, until standard input ends. */
public class Node {
    public static void main(String[] args) throws Exception {
        OpenSearchRunner runner = new OpenSearchRunner();
        runner.onBuild((n, settings) -> {
            settings.put("http.port", args[1]);
            settings.put("network.host", "127.0.0.1");
            settings.put("transport.port", "0");
            settings.put("discovery.type", "single-node");
            // The machine's disk is not this node's to judge.
            settings.put("cluster.routing.allocation.disk.threshold_enabled", false);
        }).build(OpenSearchRunner.newConfigs().basePath(args[0]).numOfNode(1).useLogger());
        while (System.in.read() >= 0) {
        }
        runner.close();
    }
}
