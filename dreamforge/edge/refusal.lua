-- What HAProxy's parser refuses, it answers with HTML of its own, which no setting changes (`h1_send_error` in its
-- `src/mux_h1.c`). So a frontend in TCP mode stands before it. A service looks at the first bytes of a connection, and
-- answers for HAProxy when they are no HTTP. A filter puts the envelope in the place of the HTML that comes back when
-- something later is none: a body's chunk, the second request of a connection.
--
-- Argument: how many seconds a client may take to send the head of its request.
-- Variables: `sess.began`, when the connection was accepted (milliseconds since the epoch, as of now below: by whole
-- seconds, or by another clock, a slow client would be told now and then that it speaks no HTTP), and `txn.received`,
-- the bytes that have come.

local patience = (tonumber((...)) - 0.5) * 1000

local ANSWER = "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nX-Request-Id: %s\r\n"
    .. "Cache-Control: no-store\r\nConnection: close\r\n\r\n%s"
local ENVELOPE = '{"error":{"code":"%s","message":"%s","details":{},"job_id":null,"request_id":"%s"}}'
local SLOW = {"408 Request Timeout", "request_timeout", "The request did not arrive in time."}
local BAD = {"400 Bad Request", "invalid_request", "The request is not valid HTTP, or its head is too large."}
local BUG = {"500 Internal Server Error", "internal", "Something went wrong inside the service."}
-- By the status of HAProxy's page; all others are for what is no HTTP.
local MEANT = {["408"] = SLOW, ["500"] = BUG}

local function answer(id, status, code, message)
    local body = ENVELOPE:format(code, message, id)
    return ANSWER:format(status, #body, id, body)
end

core.register_service("refusal", "tcp", function(applet)
    if (applet:get_var("txn.received") or 0) == 0 then
        return -- nobody has asked anything
    end
    local is_slow = applet.f:date(0, "ms") - (applet:get_var("sess.began") or 0) >= patience
    applet:send(answer(applet.f:uuid(), table.unpack(is_slow and SLOW or BAD)))
end)

-- HAProxy's pages end so, are the last thing on a connection, and are shorter than this.
local LAST = "</body></html>\n"
local MOST = 512
local PAGE = "HTTP/1%.1 ([45]%d%d) [^\r\n]+\r\nContent%-length: %d+\r\nCache%-Control: no%-cache\r\nConnection: close\r\n"
    .. "Content%-Type: text/html\r\n\r\n<html><body><h1>[^\r]*$"

local Envelope = {}
Envelope.__index = Envelope

function Envelope:new()
    return setmetatable({}, Envelope)
end

function Envelope:start_analyze(_, channel)
    if channel:is_resp() then
        filter.register_data_filter(self, channel)
    end
end

function Envelope:tcp_payload(txn, channel)
    if channel:data(-#LAST) ~= LAST then
        return
    end
    local length = math.min(channel:input(), MOST)
    local from, _, status = channel:data(-length):find(PAGE)
    if from then
        local told = answer(txn.f:uuid(), table.unpack(MEANT[status] or BAD))
        channel:set(told, from - 1 - length)
    end
end

core.register_filter("envelope", Envelope, function(class)
    return class
end)
