-- What connected sessions rely on, compared with what is there: a store that came back may lack the last writes.

-- args: msgpack of a list of {sid, token, whether to compare subscriptions, {filter, record, ...}}.
-- Returns for each session that is not as the caller has it {position, 1 if another owns it or there is none,
-- {filters that are not there, or are there with other options}, {filters too many}}.
local function verify(keys, args)
  local p, answer = keys[1], {}
  for at, item in ipairs(cmsgpack.unpack(args[1])) do
    local sid = item[1]
    if redis.call('HGET', p .. 's:' .. sid, 'token') ~= item[2] then
      answer[#answer + 1] = { at, 1, {}, {} }
    elseif item[3] then
      local stored, lacking, surplus = {}, {}, {}
      local all = redis.call('HGETALL', p .. 'sub:' .. sid)
      for i = 1, #all, 2 do
        stored[all[i]] = all[i + 1]
      end
      local wanted = item[4]
      for i = 1, #wanted, 2 do
        if stored[wanted[i]] ~= wanted[i + 1] then
          lacking[#lacking + 1] = wanted[i]
        end
        stored[wanted[i]] = nil
      end
      for filter in pairs(stored) do
        surplus[#surplus + 1] = filter
      end
      if #lacking + #surplus > 0 then
        answer[#answer + 1] = { at, 0, lacking, surplus }
      end
    end
  end
  return answer
end

redis.register_function { function_name = 'rk1_verify', callback = verify, flags = { 'no-writes' } }
