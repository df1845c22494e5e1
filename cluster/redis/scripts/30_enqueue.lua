-- What is added to the queues of sessions and groups.

-- Gives out what was just added to groups. added: by gid {group, ids, bodies, places in the answer, whether nobody had to
-- wait before, depth}.
local function give_added(p, caller, added, answer, out)
  for gid, each in pairs(added) do
    local group, ids, places = each.group, each.ids, each.places
    if each.first and take_all(p, group, caller, ids) then
      for i = 1, #ids do
        answer[places[i]] = ids[i]
      end
    else
      local direct, at = is_only_way(p, group, caller), {}
      for i = 1, #ids do
        at[ids[i]] = places[i]
      end
      give_out(p, group, { caller = caller, added = each.first and each, give = function(member, id, sid, kept, body)
        local place = direct and member == caller and at[id]
        if place then
          answer[place], answer[place + 1] = id, sid
          return true
        end
        direct = direct and member ~= caller -- an older one, and those behind it
        send_entry(out, p, member, gid, id, sid, kept, body, each.depth)
      end })
    end
    save_group(p, group)
  end
end

local UNSTORED, AFTER = -1, -2
local LOOK_BACK = 2000 -- seqs

-- Whether a message of the same topic was queued after a seq.
local function has_newer(queue, after, last, body)
  local topic = hash_key('hash_topic', body)
  for first = math.max(after, last - LOOK_BACK) + 1, last, 100 do
    local seqs = {}
    for seq = first, math.min(first + 99, last) do
      seqs[#seqs + 1] = seq
    end
    for _, value in ipairs(redis.call('HMGET', queue, unpack(seqs))) do
      if value and hash_key('hash_topic', string.sub(value, 5 + 4 * struct.unpack('>I2', value, 3))) == topic then
        return true
      end
    end
  end
  return false
end

-- Adds messages. args: node, inc, valid_until, number, max messages, max bytes, max group entries, generation, route
-- version that the oldest was matched at, then msgpack of {bodies, sessions, groups, message ids}, a session being
-- {sid, birth, body index, prefix, message id index, ...} and a group {gid, body index, message id index}; a message id
-- index 0 means no dedupe, -1 a QoS 0 message, which is not stored but passed to where the session is, and -2 less a seq
-- a retained message: only if no message of its topic was queued after that seq.
-- Answer: msgpack of, per message of a session, its seq, or -1 full, -2 gone, -3 the session unsubscribed from
-- something since that version, 0 served before or QoS 0; then three per group: entry id if the caller is to give it to
-- a member, else ''; the sid that was chosen or ''; the depth, or -1 full, -2 no such group, 0 served before.
-- What is for sessions or groups of other members goes into their streams of this partition, too.
local function enqueue(keys, args)
  local p = keys[1]
  local refused = refusal(p, args)
  if refused then
    return refused
  end
  local call, unpack_counters, pack_counters = redis.call, struct.unpack, struct.pack
  local max_count, max_bytes, max_group = tonumber(args[5]), tonumber(args[6]), tonumber(args[7])
  local gen, version, caller = tonumber(args[8]), tonumber(args[9]), args[1] .. ':' .. args[2]
  local batch = cmsgpack.unpack(args[10])
  local bodies, sessions, groups, ids = batch[1], batch[2], batch[3], batch[4]
  local answer, a, out = {}, 0, {}
  for i = 1, #sessions do
    local item = sessions[i]
    local sid = item[1]
    local key, queue = p .. 's:' .. sid, p .. 'q:' .. sid
    local s = call('HMGET', key, 'c', 'owner')
    local birth, seq, count, bytes, releasing, sent, known, uv
    if s[1] then
      birth, seq, count, bytes, releasing, sent, known, uv = unpack_counters(COUNTERS, s[1])
      if gen > known then
        seq, known, uv = seq + JUMP, gen, 0
      end
    end
    if birth ~= item[2] or uv > version then
      local reason = birth == item[2] and -3 or -2
      for _ = 3, #item, 3 do
        a = a + 1
        answer[a] = reason
      end
    else
      local first, fields, f = seq, {}, 0
      local owner = s[2] ~= caller and s[2]
      for j = 3, #item, 3 do
        a = a + 1
        local at = item[j + 2]
        local id = ids[at]
        local body = bodies[item[j]]
        local value = item[j + 1] .. body
        if at <= AFTER and has_newer(queue, AFTER - at, seq, body) then
          answer[a] = 0
        elseif at == UNSTORED then
          answer[a] = 0
          if owner then
            send_session(out, p, owner, sid, 0, item[j + 1], body)
          end
        elseif id and call('SISMEMBER', p .. 'd:' .. id, sid) == 1 then
          answer[a] = 0
          if owner then
            -- It came by another node, whose word of it may be on its way still; what follows must not overtake it.
            send_look(out, p, owner, sid, item[j + 1])
          end
        elseif count >= max_count or bytes + #value > max_bytes then
          answer[a] = -1
        else
          seq, count, bytes = seq + 1, count + 1, bytes + #value
          fields[f + 1], fields[f + 2] = seq, value
          f = f + 2
          answer[a] = seq
          if id then
            call('SADD', p .. 'd:' .. id, sid)
            call('EXPIRE', p .. 'd:' .. id, SERVED_S)
          end
          if owner then
            send_session(out, p, owner, sid, seq, item[j + 1], body)
          end
        end
      end
      if seq > first then
        if f == 2 then
          call('HSET', queue, fields[1], fields[2])
        else
          in_chunks('HSET', queue, fields)
        end
        call('HSET', key, 'c', pack_counters(COUNTERS, birth, seq, count, bytes, releasing, sent, known, uv))
      end
    end
  end
  local added, known = {}, {}
  for i = 1, #groups do
    local item = groups[i]
    local gid, id, depth = item[1], ids[item[3]], -2
    local each = known[gid]
    if each == nil then
      local group = load_group(p, gid)
      each = group and { group = group, ids = {}, bodies = {}, places = {}, depth = call('XLEN', group.key),
        first = group.orphans == 0 and waiting_of(group) == 0 } or false
      known[gid] = each
    end
    if id and call('SISMEMBER', p .. 'd:' .. id, gid) == 1 then
      depth = 0
    elseif each and each.depth >= max_group then
      depth = -1
    elseif each then
      local body, list = bodies[item[2]], each.ids
      local n = #list + 1
      list[n], each.bodies[n], each.places[n] = call('XADD', each.group.key, '*', 'm', '\1' .. body), body, a + 1
      depth = each.depth + 1
      each.depth = depth
      added[gid] = each
      if id then
        call('SADD', p .. 'd:' .. id, gid)
        call('EXPIRE', p .. 'd:' .. id, SERVED_S)
      end
    end
    answer[a + 1], answer[a + 2], answer[a + 3] = '', '', depth
    a = a + 3
  end
  give_added(p, caller, added, answer, out)
  send_all(out, p)
  return answered(p, args, cmsgpack.pack(answer))
end

redis.register_function('rk1_enqueue', enqueue)
